"""The rules of deploy/prometheus as a PrometheusRule, for the Prometheus operator. From the repository's root:

    python3 deploy/kubernetes/make_prometheusrule.py > deploy/kubernetes/monitoring/prometheusrule.yaml

A test holds the file to what this makes.
"""

import sys

RULES = ["deploy/prometheus/recording_rules.yaml", "deploy/prometheus/alerting_rules.yaml"]
HEAD = """# The rules of deploy/prometheus, made by make_prometheusrule.py; change them there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: attention-server
  labels:
    app.kubernetes.io/name: attention-server
spec:
  groups:
"""


def document() -> str:
    groups = []
    for path in RULES:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        groups.append(text[text.index("groups:\n") + len("groups:\n") :].rstrip("\n") + "\n")
    lines = "\n".join(groups).splitlines()
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(document())
