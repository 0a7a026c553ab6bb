"""Unpacks the image as a container runtime would, looks at it, and runs the server from it.

Checked: digests and sizes of the OCI layout; configuration, which must be the Dockerfile's and what the StatefulSet
counts on; no shell and nothing set-user-id; that the server starts with this file system as its root, read-only, as a
user that is not root and may not become it, answers /readyz and /metrics, and stops with 0 at SIGTERM.

To run it takes root (chroot, mount); without, that part is skipped. The Dockerfile itself is not built: that takes a
container engine and an image of Debian.
"""

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import unittest
import urllib.request

FOLDER = "deploy/container"
USER = 65532
SERVER = "/usr/bin/attention_server"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # of the tools that go into the root


class Layout:
    """The OCI image layout in an archive."""

    def __init__(self, archive):
        with tarfile.open(archive) as tar:
            self.files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
        self.index = json.loads(self.files["index.json"])
        self.manifest = json.loads(self.blob(self.index["manifests"][0]))
        self.config = json.loads(self.blob(self.manifest["config"]))

    def blob(self, descriptor):
        content = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        if (
            len(content) != descriptor["size"]
            or "sha256:" + hashlib.sha256(content).hexdigest() != descriptor["digest"]
        ):
            raise ValueError(f"a blob differs from its descriptor {descriptor}")
        return content


class ImageTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.layout = Layout(f"{FOLDER}/image.tar")
        cls.work = tempfile.TemporaryDirectory()
        cls.root = os.path.join(cls.work.name, "root")
        os.mkdir(cls.root)
        os.chmod(cls.work.name, 0o755)
        cls.entries = {}
        for number, descriptor in enumerate(cls.layout.manifest["layers"]):
            layer = gzip.decompress(cls.layout.blob(descriptor))
            if "sha256:" + hashlib.sha256(layer).hexdigest() != cls.layout.config["rootfs"]["diff_ids"][number]:
                raise ValueError("a layer differs from its diff_id")
            path = os.path.join(cls.work.name, "layer.tar")
            with open(path, "wb") as file:
                file.write(layer)
            with tarfile.open(path) as tar:
                cls.entries.update({entry.name: entry for entry in tar})
            subprocess.run(["tar", "-xpf", path, "-C", cls.root], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.work.cleanup()

    def test_layout(self):
        self.assertEqual(json.loads(self.layout.files["oci-layout"])["imageLayoutVersion"], "1.0.0")
        self.assertEqual(len(self.layout.index["manifests"]), 1)
        self.assertEqual(len(self.layout.manifest["layers"]), len(self.layout.config["rootfs"]["diff_ids"]))
        self.assertEqual(sum(name.startswith("blobs/") for name in self.layout.files), 3)

    def test_configuration_is_the_dockerfiles(self):
        config = self.layout.config["config"]
        with open(f"{FOLDER}/Dockerfile", encoding="utf-8") as file:
            said = dict(
                line.strip().split(" ", 1) for line in file if re.match("(USER|EXPOSE|STOPSIGNAL|ENTRYPOINT) ", line)
            )
        self.assertEqual(config["User"], said["USER"])
        self.assertEqual(config["StopSignal"], said["STOPSIGNAL"])
        self.assertEqual(config["Entrypoint"], json.loads(said["ENTRYPOINT"]))
        self.assertEqual(sorted(config["ExposedPorts"]), [port + "/tcp" for port in said["EXPOSE"].split()])

    def test_configuration_is_what_the_pods_count_on(self):
        with open("deploy/kubernetes/base/statefulset.yaml", encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(self.layout.config["config"]["User"], f"{USER}:{USER}")
        self.assertIn(f"runAsUser: {USER}\n", text)
        for port in self.layout.config["config"]["ExposedPorts"]:
            self.assertIn(f'containerPort: {port.split("/")[0]}\n', text)

    def test_only_the_server_can_be_run(self):
        programs = [
            name
            for name, entry in self.entries.items()
            if entry.isfile() and entry.mode & 0o111 and not re.search(r"\.so(\.|$)", name)
        ]
        self.assertEqual(programs, [SERVER[1:]])
        for name, entry in self.entries.items():
            self.assertEqual((entry.uid, entry.gid), (0, 0), name)
            self.assertFalse(entry.mode & 0o6000, f"{name} is set-user-id or set-group-id")
            self.assertTrue(
                entry.issym() or name == "tmp" or not entry.mode & 0o022, f"{name} can be written by others"
            )
            self.assertTrue(entry.isfile() or entry.isdir() or entry.issym(), f"{name} is no file, folder or link")

    def test_licences_are_in_it(self):
        self.assertIn("usr/share/doc/attention-server/LICENSE", self.entries)
        for package in ("libc6", "libgrpc++-dev", "libssl-dev"):
            self.assertIn(f"usr/share/doc/{package}/copyright", self.entries)
            self.assertIn(f"var/lib/dpkg/status.d/{package}", self.entries)

    @unittest.skipUnless(os.geteuid() == 0, "to run a file system as the root takes root")
    def test_the_server_runs_in_it(self):
        if any("libasan" in name for name in self.entries):
            self.skipTest("AddressSanitizer wants /proc, which a bare root has not got")
        # What Kubernetes does with the StatefulSet's security context, as far as it goes without a container runtime.
        script = (
            f"mount --bind {self.root} {self.root} && mount -o remount,bind,ro {self.root} && "
            f'exec setpriv --no-new-privs chroot --userspec={USER}:{USER} --groups= {self.root} "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", script, "sh", SERVER]
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("this machine lets not even root mount")
        text = subprocess.run(
            command + ["--version"], check=True, capture_output=True, text=True, env=ENVIRONMENT
        ).stdout
        self.assertRegex(text, r"^attention_server \d")

        process = subprocess.Popen(
            command + ["--listen=127.0.0.1:0", "--http_port=0", "--kv_bytes=16MiB"],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        try:
            log, port = "", None
            for line in process.stderr:
                log += line
                found = re.search(r'"serving".*"http_port":(\d+)', line)
                if found:
                    port = found.group(1)
                    break
            self.assertIsNotNone(port, log)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                self.assertEqual(answer.read(), b"ready\n")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                self.assertIn("santa_build_info", answer.read().decode())
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            self.assertEqual(status["Uid"].split(), [str(USER)] * 4)
            self.assertEqual(status["Gid"].split(), [str(USER)] * 4)
            self.assertEqual(status["NoNewPrivs"], "1")
            self.assertEqual(int(status["CapEff"], 16), 0)
            with open(f"/proc/{process.pid}/mountinfo", encoding="utf-8") as file:
                options = [line.split()[5] for line in file if line.split()[4] == "/"]
            self.assertEqual([option.split(",")[0] for option in options], ["ro"])
            process.send_signal(signal.SIGTERM)
            log += process.stderr.read()
            self.assertEqual(process.wait(timeout=30), 0, log)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


if __name__ == "__main__":
    unittest.main()
