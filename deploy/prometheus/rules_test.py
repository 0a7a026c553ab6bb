"""The rules: promtool's verdict, names of metrics that exist, cases for every rule, a section for every alert."""

import re
import subprocess
import unittest

import yaml

from deploy.testing import promql

HERE = "deploy/prometheus/"
OPERATIONS = "docs/operations.md"


def load(name):
    with open(HERE + name, encoding="utf-8") as file:
        return yaml.safe_load(file)


RECORDING = list(promql.rules(load("recording_rules.yaml")))
ALERTS = list(promql.rules(load("alerting_rules.yaml")))
# What Prometheus itself says of a target.
OF_PROMETHEUS = {"up"}


class RulesTest(unittest.TestCase):
    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_promtool_accepts_them(self):
        rules = [HERE + "recording_rules.yaml", HERE + "alerting_rules.yaml"]
        self.promtool("check", "rules", "--lint=all", "--lint-fatal", *rules)
        self.promtool("check", "config", HERE + "prometheus.yml")

    def test_cases_pass(self):
        self.promtool("test", "rules", HERE + "recording_rules_test.yaml", HERE + "alerting_rules_test.yaml")

    def test_they_name_what_exists(self):
        records = [rule["record"] for rule in RECORDING]
        self.assertEqual(len(records), len(set(records)))
        known = promql.documented() | set(records) | OF_PROMETHEUS
        for rule in RECORDING + ALERTS:
            names = promql.names(rule["expr"])
            self.assertTrue(names, rule)
            self.assertEqual(names - known, set(), rule)

    def test_cases_feed_series_that_exist(self):
        known = promql.documented() | OF_PROMETHEUS
        for name in ("recording_rules_test.yaml", "alerting_rules_test.yaml"):
            for test in load(name)["tests"]:
                for series in test["input_series"]:
                    self.assertIn(re.match(r"[\w:]+", series["series"]).group(), known)

    def test_every_recording_rule_has_a_case(self):
        cases = [case["expr"] for test in load("recording_rules_test.yaml")["tests"] for case in test["promql_expr_test"]]
        self.assertEqual(set(cases), {rule["record"] for rule in RECORDING})

    def test_every_alert_has_a_case_that_fires_and_one_that_does_not(self):
        fires, silent = set(), set()
        for test in load("alerting_rules_test.yaml")["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else silent).add(case["alertname"])
        names = {rule["alert"] for rule in ALERTS}
        self.assertEqual(fires, names)
        self.assertEqual(silent, names)

    def test_every_alert_says_what_it_is_and_where_to_read_on(self):
        with open(OPERATIONS, encoding="utf-8") as file:
            chapter = re.search(r"^## Alerts\n(.*?)(?=^## |\Z)", file.read(), re.MULTILINE | re.DOTALL).group(1)
        sections = dict(re.findall(r"^### (\w+)\n+\*(\w+)[:,]", chapter, re.MULTILINE))
        self.assertEqual(set(re.findall(r"^### (.*)$", chapter, re.MULTILINE)), {rule["alert"] for rule in ALERTS})
        for rule in ALERTS:
            severity = rule["labels"]["severity"]
            self.assertIn(severity, ("critical", "warning", "info"), rule)
            self.assertEqual(sections.get(rule["alert"], "").lower(), severity, rule)
            annotations = rule["annotations"]
            self.assertEqual(set(annotations), {"summary", "description", "runbook_url"}, rule)
            self.assertEqual(annotations["runbook_url"], f"{OPERATIONS}#{rule['alert'].lower()}")

    def test_the_chapter_names_what_exists(self):
        known = promql.documented() | {rule["record"] for rule in RECORDING}
        histograms = {name[: -len("_bucket")] for name in known if name.endswith("_bucket")}
        with open(OPERATIONS, encoding="utf-8") as file:
            named = re.findall(r"`((?:instance\w*:)?santa_[\w:]+)`", file.read())
        self.assertTrue(named)
        self.assertEqual(set(named) - known - histograms, set())


if __name__ == "__main__":
    unittest.main()
