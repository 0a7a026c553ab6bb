"""What promql.py takes for a metric."""

import unittest

from deploy.testing import promql


class NamesTest(unittest.TestCase):
    def test_finds_metrics_and_nothing_else(self):
        cases = {
            "up": {"up"},
            "1 + 2.5e3 > bool 0x1f": set(),
            'sum without (code) (rate(a_total{code=~"b|c", d!="e"}[5m]))': {"a_total"},
            "sum(rate(a_total[5m])) by (method, code)": {"a_total"},
            "l:a:r5m / ignoring (code) group_left () sum without (code) (l:b:r5m)": {"l:a:r5m", "l:b:r5m"},
            "a / on (x) group_left b": {"a", "b"},
            "a > 10 and max_over_time(b[5m:30s] offset 1h) unless on (job) c": {"a", "b", "c"},
            'histogram_quantile(0.99, sum by (le) (rate(a_bucket{x="}"}[1m])))': {"a_bucket"},
            'label_replace(a, "to", "$1", "from", "(.*)") # b': {"a"},
            "-a ^ b % c == bool d": {"a", "b", "c", "d"},
        }
        for expression, expected in cases.items():
            self.assertEqual(promql.names(expression), expected, expression)

    def test_reads_the_document(self):
        series = promql.documented()
        self.assertIn("santa_sequences", series)
        self.assertIn("santa_attend_seconds_bucket", series)
        self.assertNotIn("santa_attend_seconds", series)


if __name__ == "__main__":
    unittest.main()
