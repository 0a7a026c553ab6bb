"""The local stack: a real server under real load, scraped by a real Prometheus, its page drawn by a real browser."""

import os
import re
import tempfile
import unittest

from deploy.local import browser, local_stack, stack


class LocalStackTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.local = local_stack.LocalStack(cls.folder.name)
        cls.addClassCleanup(stack.stop, cls.local.processes)
        cls.value = staticmethod(cls.local.prometheus.value)
        stack.eventually(cls.local.shows_data, "the dashboard has data")

    def between(self, expression, low, high):
        value = self.value(expression)
        self.assertIsNotNone(value, expression)
        self.assertGreater(value, low, expression)
        self.assertLess(value, high, expression)

    def test_speedup_is_measured(self):
        # Of the same steps on the same device: whatever the machine, neither is many times the other.
        self.between(local_stack.SPEEDUP, 0.1, 10)
        methods = {labels["method"] for labels, value in self.local.prometheus.query("santa_audit_speedup_ratio_count > 0")}
        self.assertLessEqual(methods, {"S2ANTA_FLASH", "S2ANTA_PROP", "COORDINATED"})
        self.assertTrue(methods)

    def test_error_is_measured(self):
        # 1,024 draws over 8,192 tokens: neither exact nor noise.
        self.between(local_stack.ERROR, 0.001, 1)
        self.assertEqual(self.value("sum(santa_audit_changed_answers_total)"), 0)

    def test_bandwidth_is_that_of_a_memory(self):
        self.between(local_stack.BANDWIDTH, 1e7, 1e13)
        self.between(
            'sum(rate(santa_kv_bytes_read_total{method="S2ANTA_FLASH"}[1m]))'
            ' / sum(rate(santa_dense_kv_bytes_total{method="S2ANTA_FLASH"}[1m]))',
            0.49,  # all of K is read
            0.999,
        )

    def test_the_queue_is_seen(self):
        self.between(local_stack.QUEUE, 0, 10)
        self.assertIsNotNone(self.value("sum(santa_requests_waiting)"))
        self.assertEqual(self.value("sum(santa_sequences)"), 2 * len(local_stack.LOADS))
        self.between("max(santa_kv_cache_usage_ratio)", 0.75, 0.85)

    def test_the_audit_costs_what_it_may(self):
        self.between("sum(santa_audit_device_seconds_total)", 0, 1e6)

    def test_the_rules_are_loaded(self):
        stack.eventually(
            lambda: self.value("sum(instance_method:santa_attend_items:rate5m)"), "the recording rules give something"
        )

    def test_the_dashboard_is_drawn(self):
        picture = os.path.join(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", self.folder.name), "dashboard.png")
        url = self.local.prometheus.dashboard + "?range=5m"
        with tempfile.TemporaryDirectory() as profile:
            document = browser.render(url, profile, picture)
        self.assertIn('data-drawn="true"', document)
        self.assertIn(">1 of 1 serving<", document)
        self.assertRegex(document, r'<p id="problem"></p>')
        values = re.findall(r'<div class="value[^"]*">([^<]*)<', document)
        self.assertEqual(len(values), 10)
        self.assertNotIn("–", values, "a tile has no value")
        panels = dict(re.findall(r"<h3>([^<]*)</h3>(.*?)(?=<h3>|</body>)", document, re.DOTALL))
        self.assertEqual(len(panels), 18)
        lines = {title: len(re.findall(r'class="series"', drawn)) for title, drawn in panels.items()}
        self.assertEqual(lines["Items answered"], len(local_stack.LOADS))
        self.assertGreaterEqual(lines["Speedup by method"], 1)
        self.assertGreaterEqual(lines["Relative error by method"], 1)
        empty = {title for title, number in lines.items() if number == 0}
        # COORDINATED alone predicts its error, and may not have been audited yet.
        empty.discard("Error seen over error predicted")
        self.assertEqual(empty, {"Items that failed"}, "nothing failed, and everything else has a line")
        self.assertGreater(os.path.getsize(picture), 20000)


if __name__ == "__main__":
    unittest.main()
