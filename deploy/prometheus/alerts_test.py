"""Every alert fires by a real fault: servers that are full, slow, failing or gone, scraped by a real Prometheus.

The rules are those of this folder but for their clock, which runs sixty times as fast: what they call a minute is a
second here. Loads are on loopback, few items a second.
"""

import os
import re
import signal
import subprocess
import tempfile
import unittest

import yaml

from deploy.local import stack

FAULTY = "tests/faulty_server"
CLI = "client/attention_cli"
FOLDER = "deploy/prometheus"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
HURRY = 60

# 64 pages of 16 tokens.
SMALL = ["--num_layers=1", "--num_query_heads=4", "--num_kv_heads=2", "--head_dim=8", "--page_size=16", "--kv_bytes=64KiB"]
# An answer of 192 items is 1.5 MiB; 32 of them are more than sockets and flow control have room for.
WIDE = ["--num_layers=1", "--num_query_heads=32", "--num_kv_heads=8", "--head_dim=128", "--page_size=16", "--kv_bytes=32MiB"]


def hurried(text):
    """A duration of PromQL, shorter."""
    number, unit = re.fullmatch(r"(\d+)(\w)", text).groups()
    return f"{int(number) * SECONDS[unit] * 1000 // HURRY}ms"


def hurried_rules(name, folder):
    """A file of rules with every window and every wait shorter; its path."""
    with open(f"{FOLDER}/{name}", encoding="utf-8") as file:
        document = yaml.safe_load(file)
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\w+)\]", lambda window: f"[{hurried(window.group(1))}]", rule["expr"])
            if "for" in rule:
                rule["for"] = hurried(rule["for"])
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(document, file)
    return path


class AlertsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.processes = []
        cls.addClassCleanup(stack.stop, cls.processes, signal.SIGKILL)
        tokens = os.path.join(cls.folder, "tokens")
        with open(tokens, "w", encoding="utf-8") as file:
            file.write("a-token a-tenant\n")

        cls.servers = {
            "full": cls.server("full", [*SMALL]),
            "locked": cls.server("locked", [*SMALL, f"--auth_tokens_file={tokens}"]),
            "forgotten": cls.server("forgotten", [*SMALL, "--default_lease=2s", "--max_lease=2s"]),
            "wrong": cls.server(
                "wrong",
                [*SMALL, "--audit_share=1", "--audit_max_device_share=1", "--audit_error_bound=0.9"],
                FAULTY,
            ),
            "slow": cls.server("slow", [*SMALL, "--max_batch_items=8", "--max_items_per_request=16"], FAULTY),
            "broken": cls.server("broken", [*WIDE, "--drain_grace=60s"], FAULTY),
            "leaving": cls.server("leaving", [*WIDE, "--drain_grace=60s"], FAULTY),
            "killed": cls.server("killed", [*SMALL]),
        }
        rules = [hurried_rules(name, cls.folder) for name in ("recording_rules.yaml", "alerting_rules.yaml")]
        targets = {name: [server.http_address] for name, server in cls.servers.items()}
        cls.prometheus = stack.Prometheus(os.path.join(cls.folder, "prometheus"), targets, "250ms", rules)
        cls.processes.append(cls.prometheus)
        stack.eventually(
            lambda: cls.prometheus.value("count(santa_serving == 1)") == len(targets), "every server is scraped"
        )

    @classmethod
    def server(cls, name, flags, binary=stack.SERVER):
        server = stack.Server(os.path.join(cls.folder, name), [*flags, "--threads=1"], binary)
        cls.processes.append(server)
        return server

    def load(self, name, flags):
        log = os.path.join(self.folder, f"load-{self._testMethodName}-{len(flags)}.log")
        load = stack.Load(self.servers[name], log, ["--warmup_seconds=0", *flags])
        self.addCleanup(load.stop, signal.SIGKILL)
        return load

    def fires(self, alert, name, **labels):
        """That it does, within the time that a loaded machine takes, and for this server."""
        matchers = "".join(f',{label}="{value}"' for label, value in labels.items())
        firing = f'max_over_time(ALERTS{{alertname="{alert}",alertstate="firing",job="{name}"{matchers}}}[1h])'
        stack.eventually(lambda: self.prometheus.query(firing), f"{alert} fires for {name}")

    def is_silent(self, name):
        self.assertEqual(self.prometheus.query(f'max_over_time(ALERTS{{alertstate="firing",job="{name}"}}[1h])'), [])

    def steps_are_answered(self, name):
        answered = f'sum(santa_attend_items_total{{code="OK",job="{name}"}}) > 0'
        stack.eventually(lambda: self.prometheus.query(answered), f"{name} answers steps")

    def test_a_full_cache(self):
        self.is_silent("full")
        # Every step stores a token, until no page is free.
        self.load("full", ["--tokens=1", "--append", "--sequences=4", "--rate=400"])
        self.fires("SantaKvCacheNearlyFull", "full")
        self.fires("SantaKvCacheFull", "full")
        self.fires("SantaItemErrors", "full", code="RESOURCE_EXHAUSTED")

    def test_callers_without_a_token(self):
        self.is_silent("locked")

        def refused_and_fired():
            done = subprocess.run([CLI, f"--server={self.servers['locked'].address}", "info"], capture_output=True, check=False)
            self.assertNotEqual(done.returncode, 0)
            return self.prometheus.query('ALERTS{alertname="SantaCallErrors",alertstate="firing",job="locked"}')

        stack.eventually(refused_and_fired, "SantaCallErrors fires")

    def test_a_client_that_vanishes(self):
        self.is_silent("forgotten")
        load = self.load("forgotten", ["--tokens=16", "--sequences=20", "--rate=20"])
        self.steps_are_answered("forgotten")
        load.stop(signal.SIGKILL)
        self.fires("SantaLeaseExpiryStorm", "forgotten")

    def test_answers_that_are_wrong(self):
        load = self.load("wrong", ["--tokens=128", "--samples=64", "--method=SYSTEMATIC", "--rate=100"])
        stack.eventually(
            lambda: self.prometheus.query('santa_audit_relative_error_count{job="wrong",method="SYSTEMATIC"} > 20'),
            "steps are audited",
        )
        self.is_silent("wrong")
        self.servers["wrong"].send(signal.SIGUSR2)
        self.fires("SantaAnswersChanged", "wrong", method="SYSTEMATIC")
        self.fires("SantaAuditFallback", "wrong", method="SYSTEMATIC")
        load.check_alive()
        self.assertIn("the audited error passed its bound; answering exactly", self.servers["wrong"].log())

    def test_a_slow_device(self):
        self.is_silent("slow")
        self.servers["slow"].send(signal.SIGHUP)
        self.load("slow", ["--tokens=16", "--sequences=16", "--in_flight=32"])
        self.fires("SantaQueueGrowing", "slow")
        self.fires("SantaSlowSteps", "slow", method="EXACT")

    def hold_a_stream(self, name):
        """A client that reads no more: its stream cannot end, so a drain takes as long as it may."""
        flags = ["--tokens=16", "--sequences=192", "--in_flight=32"]
        load = self.load(name, [*flags, "--share_memory=false"])  # whose answers nobody has to read
        self.steps_are_answered(name)
        load.send(signal.SIGSTOP)
        self.addCleanup(load.send, signal.SIGCONT)
        waiting = f'santa_requests_waiting{{job="{name}"}} + santa_requests_running{{job="{name}"}} == 0'
        stack.eventually(lambda: self.prometheus.query(waiting), f"{name} has answered what it may")

    def test_a_device_that_fails(self):
        self.hold_a_stream("broken")
        self.load("broken", ["--tokens=16", "--sequences=2", "--rate=20"])
        self.is_silent("broken")
        self.servers["broken"].send(signal.SIGUSR1)
        self.fires("SantaDeviceFailed", "broken")

    def test_a_drain(self):
        self.hold_a_stream("leaving")
        self.load("leaving", ["--tokens=16", "--sequences=2", "--rate=20"])
        self.is_silent("leaving")
        self.servers["leaving"].send(signal.SIGTERM)
        self.fires("SantaDraining", "leaving")
        self.fires("SantaNotServing", "leaving")

    def test_a_server_that_is_killed(self):
        load = self.load("killed", ["--tokens=16", "--rate=50"])
        self.steps_are_answered("killed")
        self.is_silent("killed")
        killed = self.servers["killed"]
        killed.stop(signal.SIGKILL)
        load.stop(signal.SIGKILL)
        self.fires("SantaServerDown", "killed")
        self.processes.append(
            stack.Server(os.path.join(self.folder, "killed"), [*SMALL, "--threads=1"], ports=(killed.port, killed.http_port))
        )
        self.fires("SantaServerRestarted", "killed")

    def test_no_alert_is_left_out(self):
        with open(f"{FOLDER}/alerting_rules.yaml", encoding="utf-8") as file:
            alerts = set(re.findall(r"- alert: (\w+)", file.read()))
        with open(f"{FOLDER}/alerts_test.py", encoding="utf-8") as file:
            tested = set(re.findall(r'self\.fires\("(\w+)"|alertname="(\w+)",alertstate="firing",job="\w+"', file.read()))
        self.assertEqual({name for pair in tested for name in pair if name}, alerts)


if __name__ == "__main__":
    unittest.main()
