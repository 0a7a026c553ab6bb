"""The console's expressions: each parses and names what exists. That it is drawn is for the test of the local stack."""

import json
import re
import subprocess
import tempfile
import unittest

import yaml

from deploy.testing import promql

PAGE = "deploy/prometheus/consoles/santa.html"
VALUES = {"w": "1m", "a": "15m", "i": ".+"}


def definitions():
    with open(PAGE, encoding="utf-8") as file:
        return json.loads(re.search(r'id="definitions">(.*?)</script>', file.read(), re.DOTALL).group(1))


class ConsoleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        page = definitions()
        panels = [panel for row in page["rows"] for panel in row["panels"]]
        cls.targets = [target for panel in panels for target in panel["targets"]]
        cls.expressions = [one["expr"] for one in page["tiles"] + cls.targets]

    def test_expressions_parse(self):
        filled = [re.sub(r"\$(\w)", lambda match: VALUES[match.group(1)], one) for one in self.expressions]
        rules = [{"record": f"expression:{i}", "expr": one} for i, one in enumerate(filled)]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "console", "rules": rules}]}, file)
            file.flush()
            done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_name_what_the_server_has(self):
        for expression in self.expressions:
            names = promql.names(expression)
            self.assertTrue(names, expression)
            self.assertEqual(names - promql.documented(), set(), expression)

    def test_each_is_of_the_chosen_server(self):
        for expression in self.expressions:
            self.assertEqual(expression.count('instance=~"$i"'), expression.count("santa_"), expression)

    def test_legends_name_labels_that_are_left(self):
        for target in self.targets:
            for label in re.findall(r"\{(\w+)\}", target["legend"]):
                kept = re.findall(r"sum by \(([^)]*)\)", target["expr"])
                self.assertTrue(label in ", ".join(kept) or not kept, target)

    def test_prometheus_has_nothing_to_expand_in_it(self):
        with open(PAGE, encoding="utf-8") as file:
            self.assertNotIn("{{", file.read())


if __name__ == "__main__":
    unittest.main()
