"""The dashboard: its form, and that every expression parses and names what exists.

Not Grafana itself: whether it draws the panels well is for eyes.
"""

import json
import re
import subprocess
import tempfile
import unittest

import yaml

from deploy.testing import promql

VALUES = {"job": "santa", "instance": "127.0.0.1:9464", "ceiling": "3.35e12"}
# Labels that a panel may name beside those of the metrics: what every scrape gives.
LABELS_OF_A_TARGET = {"job", "instance"}


def records():
    with open("deploy/prometheus/recording_rules.yaml", encoding="utf-8") as file:
        return {rule["record"]: rule["expr"] for rule in promql.rules(yaml.safe_load(file))}


def alerts():
    with open("deploy/prometheus/alerting_rules.yaml", encoding="utf-8") as file:
        return [rule["expr"] for rule in promql.rules(yaml.safe_load(file))]


def variables_in(text):
    return set(re.findall(r"\$\{?(\w+)", text))


def substituted(expression):
    return re.sub(r"\$\{?(\w+)\}?", lambda match: VALUES[match.group(1)], expression)


def check_expressions(expressions):
    """What promtool says of them, each as a rule of a file."""
    rules = [{"record": f"expression:{i}", "expr": expression} for i, expression in enumerate(expressions)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        command = ["promtool", "check", "rules", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=False)


class DashboardTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open("deploy/grafana/santa.json", encoding="utf-8") as file:
            cls.dashboard = json.load(file)
        cls.panels = [panel for panel in cls.dashboard["panels"] if panel["type"] != "row"]
        cls.targets = [target for panel in cls.panels for target in panel["targets"]]
        cls.expressions = [target["expr"] for target in cls.targets]

    def test_panels_say_what_they_show(self):
        for panel in self.panels:
            self.assertTrue(panel["title"] and panel["description"] and panel["targets"], panel["title"])
            self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
            for target in panel["targets"]:
                self.assertTrue(target["legendFormat"], panel["title"])
            self.assertEqual(len({target["refId"] for target in panel["targets"]}), len(panel["targets"]))

    def test_panels_do_not_overlap(self):
        ids = [panel["id"] for panel in self.dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = {}
        for panel in self.dashboard["panels"]:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken[x, y] = panel["title"]

    def test_variables_are_used_and_defined(self):
        defined = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        self.assertEqual(variables_in(json.dumps(self.dashboard)) - {"__all"}, defined)
        for item in self.panels + self.targets:
            self.assertEqual(item["datasource"], {"type": "prometheus", "uid": "${datasource}"})

    def test_variables_ask_for_what_exists(self):
        queries = [v["query"]["query"] for v in self.dashboard["templating"]["list"] if v["type"] == "query"]
        self.assertTrue(queries)
        for query in queries:
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
            self.assertEqual(promql.names(metric) - promql.documented(), set(), query)
            self.assertIn(label, LABELS_OF_A_TARGET)

    def test_every_expression_parses(self):
        done = check_expressions([substituted(expression) for expression in self.expressions])
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotEqual(check_expressions(["sum(santa_sequences"]).returncode, 0)

    def test_expressions_name_what_exists(self):
        known = promql.documented() | set(records())
        for expression in self.expressions:
            self.assertEqual(promql.names(substituted(expression)) - known, set(), expression)
            if "vector(" not in expression:
                self.assertIn('job=~"$job", instance=~"$instance"', expression)

    def test_rates_come_from_the_recording_rules(self):
        for expression in self.expressions:
            self.assertIsNone(re.search(r"\b(rate|irate|increase|histogram_quantile)\s*\(", expression), expression)

    def test_legends_name_labels_that_exist(self):
        with open("docs/metrics.md", encoding="utf-8") as file:
            labels = set(re.findall(r"^\| `(\w+)` \| `santa_", file.read(), re.MULTILINE)) | LABELS_OF_A_TARGET
        for target in self.targets:
            self.assertEqual(set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - labels, set(), target)

    def test_no_recording_rule_is_for_nothing(self):
        used = set()
        for expression in [*map(substituted, self.expressions), *alerts(), *records().values()]:
            used |= promql.names(expression)
        self.assertEqual(set(records()) - used, set())


if __name__ == "__main__":
    unittest.main()
