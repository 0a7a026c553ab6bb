"""Renders every overlay with kubectl and checks it without a cluster:

- every document against the JSON schemas that Kubernetes publishes, strict, of the two releases in
  third_party/kubernetes_schemas (ServiceMonitor and PrometheusRule: against schemas of our own);
- the restricted Pod Security Standard;
- every flag against `attention_server --help`, and the whole command line by starting the server with it;
- that flags, ports, probes, selectors, memory, grace periods and metrics agree with each other and with that server.

No API server takes part: admission, scheduling and what a network plugin makes of the NetworkPolicy are not tested.
"""

import copy
import glob
import json
import os
import re
import subprocess
import tempfile
import unittest
import urllib.request

import yaml

import make_prometheusrule
from manifest_checks import agreement_problems, flag_problems, reference_problems, schema_problems, security_problems
from render import render

ROOT = "deploy/kubernetes"
SERVER = "server/attention_server"
OVERLAYS = ["cpu-trial", "one-gpu", "several-gpus"]
RELEASES = {
    os.path.basename(path)[: -len(".json")]: path for path in glob.glob("third_party/kubernetes_schemas/v*.json")
}


def load_schemas():
    schemas = {}
    for release, path in RELEASES.items():
        with open(path, encoding="utf-8") as file:
            schemas[release] = json.load(file)
    return schemas


def find(documents, kind):
    (document,) = [document for document in documents if document["kind"] == kind]
    return document


class RunningServer:
    """attention_server with ARGUMENTS on free ports of this machine; `http` is where its HTTP answers."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(
            [SERVER] + arguments + ["--listen=127.0.0.1:0", "--http_port=0", "--log_level=info"],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            match = re.search(r'"serving".*"http_port":\s*(\d+)', line)
            if match:
                self.http = "http://127.0.0.1:" + match.group(1)
                return
        raise AssertionError(f"the server did not start: {self.log}")

    def get(self, path):
        with urllib.request.urlopen(self.http + path, timeout=10) as answer:
            return answer.read().decode()

    def stop(self):
        self.process.terminate()
        self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(timeout=30)


class ManifestsTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.schemas = load_schemas()
        cls.overlays = {name: render(ROOT, name) for name in OVERLAYS}
        cls.monitoring = render(ROOT, "monitoring")
        help_text = subprocess.run([SERVER, "--help"], check=True, capture_output=True, text=True).stdout
        cls.flags = set(re.findall(r"^  --([a-z_0-9]+)=", help_text, re.MULTILINE))

    def container(self, overlay):
        return find(self.overlays[overlay], "StatefulSet")["spec"]["template"]["spec"]["containers"][0]

    def test_every_folder_is_rendered(self):
        folders = {os.path.basename(os.path.dirname(path)) for path in glob.glob(ROOT + "/*/kustomization.yaml")}
        self.assertEqual(folders, {"base", "monitoring", *OVERLAYS})
        self.assertEqual(len(self.schemas), 2)

    def test_documents_match_the_schemas(self):
        for overlay, documents in [*self.overlays.items(), ("monitoring", self.monitoring)]:
            self.assertTrue(documents)
            for release, schemas in self.schemas.items():
                for document in documents:
                    with self.subTest(overlay=overlay, release=release, kind=document["kind"]):
                        self.assertEqual(schema_problems(document, schemas), [])

    def test_the_schemas_refuse_what_is_wrong(self):
        def changed(kind, change):
            document = copy.deepcopy(find(self.overlays["several-gpus"] + self.monitoring, kind))
            change(document)
            return document

        wrong = [
            changed("StatefulSet", lambda d: d["spec"].update(replica=2)),
            changed("StatefulSet", lambda d: d["spec"].update(replicas="two")),
            changed("StatefulSet", lambda d: d["spec"].update(serviceName=None)),
            changed("StatefulSet", lambda d: d["spec"]["template"]["spec"]["containers"][0].pop("name")),
            changed("StatefulSet", lambda d: d.update(apiVersion="apps/v1beta1")),
            changed("Service", lambda d: d["spec"]["ports"][0].update(port="grpc")),
            changed("HorizontalPodAutoscaler", lambda d: d["spec"].pop("maxReplicas")),
            changed("NetworkPolicy", lambda d: d["spec"].update(policyTypes="Ingress")),
            changed("PodDisruptionBudget", lambda d: d.update(kind="PodDisruptionBudgets")),
            changed("ServiceMonitor", lambda d: d["spec"]["endpoints"][0].update(intervall="15s")),
        ]
        for release, schemas in self.schemas.items():
            for document in wrong:
                with self.subTest(release=release, document=document):
                    self.assertNotEqual(schema_problems(document, schemas), [])

    def test_pods_are_restricted(self):
        for overlay, documents in self.overlays.items():
            with self.subTest(overlay=overlay):
                pod = find(documents, "StatefulSet")["spec"]["template"]["spec"]
                self.assertEqual(security_problems(pod), [])
                for change in (
                    lambda p: p.pop("securityContext"),
                    lambda p: p.update(hostNetwork=True),
                    lambda p: p.update(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
                    lambda p: p["containers"][0].pop("securityContext"),
                    lambda p: p["containers"][0]["securityContext"].update(privileged=True),
                    lambda p: p["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
                ):
                    loose = copy.deepcopy(pod)
                    change(loose)
                    self.assertNotEqual(security_problems(loose), [])

    def test_flags_are_the_servers(self):
        self.assertIn("listen", self.flags)
        self.assertEqual(len(flag_problems(["--no_such_flag=1", "word", "--listen=a", "--listen=b"], self.flags)), 3)
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                self.assertEqual(flag_problems(self.container(overlay)["args"], self.flags), [])

    def test_flags_agree_with_the_pod(self):
        for overlay, documents in self.overlays.items():
            with self.subTest(overlay=overlay):
                stateful_set = find(documents, "StatefulSet")
                self.assertEqual(agreement_problems(stateful_set), [])
                hasty = copy.deepcopy(stateful_set)
                hasty["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20
                hasty["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = {
                    "grpc": {"port": 50051, "service": "santa.attention.v1.AttentionService"}
                }
                self.assertGreaterEqual(len(agreement_problems(hasty)), 2)
                elsewhere = copy.deepcopy(stateful_set)
                elsewhere["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 1
                self.assertNotEqual(agreement_problems(elsewhere), [])

    def test_names_meet_something(self):
        for overlay, documents in self.overlays.items():
            with self.subTest(overlay=overlay):
                self.assertEqual(reference_problems(documents), [])
                astray = copy.deepcopy(documents)
                find(astray, "Service")["spec"]["selector"] = {"app.kubernetes.io/name": "another"}
                find(astray, "Service")["metadata"]["namespace"] = "default"
                self.assertEqual(len(reference_problems(astray)), 2)

    def test_the_monitor_finds_the_service(self):
        service = find(self.overlays["one-gpu"], "Service")
        monitor = find(self.monitoring, "ServiceMonitor")
        self.assertLessEqual(monitor["spec"]["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
        self.assertEqual(monitor["metadata"]["namespace"], service["metadata"]["namespace"])
        self.assertIn(monitor["spec"]["endpoints"][0]["port"], [port["name"] for port in service["spec"]["ports"]])

    def test_the_rules_are_those_of_the_other_folder(self):
        with open(f"{ROOT}/monitoring/prometheusrule.yaml", encoding="utf-8") as file:
            self.assertEqual(file.read(), make_prometheusrule.document())
        rule = find(self.monitoring, "PrometheusRule")
        groups = []
        for path in make_prometheusrule.RULES:
            with open(path, encoding="utf-8") as file:
                groups += yaml.safe_load(file)["groups"]
        self.assertEqual(rule["spec"]["groups"], groups)

    def test_a_server_takes_the_command_lines_and_answers_the_probes(self):
        scaler = find(self.overlays["several-gpus"], "HorizontalPodAutoscaler")
        metrics = [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]
        path = find(self.monitoring, "ServiceMonitor")["spec"]["endpoints"][0]["path"]
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay), tempfile.TemporaryDirectory() as folder:
                container = self.container(overlay)
                # This machine has less memory, no GPU, and no certificate; the rest of the line stays as it is.
                arguments = container["args"] + [
                    "--kv_bytes=64MiB",
                    "--kv_memory_fraction=0",
                    "--backend=cpu",
                    "--threads=1",
                    "--tls_cert=",
                    "--tls_key=",
                ]
                if any(argument.startswith("--auth_tokens_file=") for argument in arguments):
                    tokens = os.path.join(folder, "tokens")
                    with open(tokens, "w", encoding="utf-8") as file:
                        file.write("a-token a-tenant\n")
                    arguments.append("--auth_tokens_file=" + tokens)
                server = RunningServer(arguments)
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    # Of gRPC's, /readyz says the same; raises on anything but 200.
                    server.get(container[probe].get("httpGet", {"path": "/readyz"})["path"])
                served = server.get(path)
                for metric in metrics:
                    self.assertRegex(served, rf"(?m)^# TYPE {metric} gauge$")
                self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
