"""make_rootfs.py PROGRAM LICENSE ROOTFS.tar: the root file system of the server's container image.

In it: the program, the shared libraries that ldd names, where Debian has them, a user, /tmp, and for every Debian
package of which code is in it the copyright file and the entry that vulnerability scanners look for. No shell, no
package manager. The same input gives the same bytes.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile

USER = 65532  # as kubernetes/base/statefulset.yaml says; no name of this machine
NAME = "attention-server"

# Packages of which an archive or a header is compiled into the program (tools/bazel/portable.bzl, third_party/BUILD).
COMPILED_IN = [
    "libabsl-dev",
    "libc-ares-dev",
    "libgrpc++-dev",
    "libgrpc-dev",
    "libhwy-dev",
    "libprotobuf-dev",
    "libre2-dev",
    "libssl-dev",
    "nlohmann-json3-dev",
    "zlib1g-dev",
]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def libraries(program):
    """Absolute paths of the shared libraries and of the loader."""
    text = run("ldd", program)
    if "not found" in text:
        raise SystemExit(f"make_rootfs: a shared library of {program} is missing:\n{text}")
    return re.findall(r"(?:=> |^\t)(/\S+) \(0x", text, re.MULTILINE)


def package_of(path):
    """Debian knows a file under /lib by that name, or by the one under /usr/lib."""
    real = os.path.realpath(path)
    for name in (path, real, real.removeprefix("/usr"), "/usr" + real):
        done = subprocess.run(["dpkg-query", "--search", name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    raise SystemExit(f"make_rootfs: no package has {path}")


class Rootfs:
    """Entries by path; every folder on the way to them is added."""

    def __init__(self):
        self._entries = {}

    def _add(self, path, kind, mode, content=b"", target=""):
        parts = path.split("/")
        for i in range(1, len(parts)):
            folder = "/".join(parts[:i])
            if folder not in self._entries:
                self._add(folder, tarfile.DIRTYPE, 0o755)
        self._entries[path] = (kind, mode, content, target)

    def folder(self, path, mode):
        self._add(path, tarfile.DIRTYPE, mode)

    def link(self, path, target):
        self._add(path, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, path, content, mode=0o644):
        self._add(path, tarfile.REGTYPE, mode, content if isinstance(content, bytes) else content.encode())

    def copy(self, path, source, mode=0o644):
        with open(source, "rb") as file:
            self.file(path, file.read(), mode)

    def write(self, archive):
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
            for path, (kind, mode, content, target) in sorted(self._entries.items()):
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
                tar.addfile(entry, io.BytesIO(content))


def main():
    program, licence, archive = sys.argv[1:]
    rootfs = Rootfs()
    # As Debian merges them, so that each path that the loader knows is there.
    rootfs.link("lib", "usr/lib")
    rootfs.link("lib64", "usr/lib64")
    rootfs.folder("tmp", 0o1777)
    rootfs.file("etc/passwd", f"root:x:0:0:root:/:/nonexistent\nsanta:x:{USER}:{USER}::/:/nonexistent\n")
    rootfs.file("etc/group", f"root:x:0:\nsanta:x:{USER}:\n")
    rootfs.copy("etc/os-release", "/etc/os-release")  # by which scanners know whose packages these are
    rootfs.copy(f"usr/share/doc/{NAME}/LICENSE", licence)

    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, program], check=True)
        rootfs.copy("usr/bin/attention_server", stripped.name, 0o755)
    packages = set(COMPILED_IN)
    for library in libraries(program):
        packages.add(package_of(library))
        path = library if library.startswith("/usr/") else "/usr" + library
        rootfs.copy(path[1:], library, 0o755)

    for package in sorted(packages):
        rootfs.copy(f"usr/share/doc/{package}/copyright", f"/usr/share/doc/{package}/copyright")
        rootfs.file(f"var/lib/dpkg/status.d/{package}", run("dpkg-query", "--status", package))
    rootfs.write(archive)


if __name__ == "__main__":
    main()
