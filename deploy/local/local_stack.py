"""An attention server under load, and a Prometheus with the dashboard, on this machine.

    ./bazelw run //deploy:local_stack                    # until Ctrl-C
    ./bazelw run //deploy:local_stack -- --seconds=60    # or for a while

It waits until the dashboard has something to show, then says where to look.
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from typing import Dict, List

from deploy.local import stack

# The shape of Llama 3 8B, two layers of it. Audits come fifty times as often as by default, so that there is
# something to see at once.
SERVER_FLAGS = [
    "--num_layers=2",
    "--num_query_heads=32",
    "--num_kv_heads=8",
    "--head_dim=128",
    "--kv_bytes=640MiB",
    "--audit_share=0.05",
    "--audit_max_device_share=0.1",
]
# Open loops, which leave the machine room for something else.
LOADS: Dict[str, List[str]] = {
    "flash": ["--method=S2ANTA_FLASH", "--samples=1024", "--rate=12"],
    "prop": ["--method=S2ANTA_PROP", "--samples=1024", "--rate=8"],
    "coordinated": ["--method=COORDINATED", "--samples=1024", "--rate=6"],
    "exact": ["--method=EXACT", "--rate=5"],
}
LOAD_FLAGS = ["--sequences=2", "--tokens=8192", "--layers=2"]

# What the dashboard is about.
SPEEDUP = (
    'sum(rate(santa_audit_seconds_total{run="exact"}[5m])) / sum(rate(santa_audit_seconds_total{run="sampled"}[5m]))'
)
ERROR = "sum(rate(santa_audit_relative_error_sum[5m])) / sum(rate(santa_audit_relative_error_count[5m]))"
BANDWIDTH = "sum(rate(santa_kv_bytes_read_total[1m])) / sum(rate(santa_device_seconds_total[1m]))"
QUEUE = "histogram_quantile(0.99, sum by (le) (rate(santa_request_queue_seconds_bucket[1m])))"


class LocalStack:
    """Everything, started; `with` ends it."""

    def __init__(self, folder: str):
        self.processes: List[stack.Process] = []
        try:
            self.server = stack.Server(os.path.join(folder, "server"), SERVER_FLAGS)
            self.processes.append(self.server)
            self.loads = {}
            for number, (name, flags) in enumerate(LOADS.items()):
                log = os.path.join(folder, f"load-{name}.log")
                self.loads[name] = stack.Load(self.server, log, [*LOAD_FLAGS, f"--seed={number + 1}", *flags])
                self.processes.append(self.loads[name])
            self.prometheus = stack.Prometheus(
                os.path.join(folder, "prometheus"), {"santa": [self.server.http_address]}, "1s"
            )
            self.processes.append(self.prometheus)
        except BaseException:
            stack.stop(self.processes)
            raise

    def __enter__(self) -> "LocalStack":
        return self

    def __exit__(self, *_) -> None:
        stack.stop(self.processes)

    def shows_data(self) -> bool:
        for process in self.processes:
            process.check_alive()
        return all(self.prometheus.value(one) is not None for one in (SPEEDUP, ERROR, BANDWIDTH, QUEUE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="how long it runs; 0: until Ctrl-C")
    arguments = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="santa-local-stack.") as folder:
        print("starting a server, load and Prometheus; logs are in " + folder, flush=True)
        with LocalStack(folder) as local:
            end = time.monotonic() + 120
            while not local.shows_data():
                if time.monotonic() > end:
                    raise SystemExit("the dashboard has had nothing to show for two minutes; see the logs")
                if stopped.wait(0.5):
                    return
            value = local.prometheus.value
            print(
                f"""
dashboard    {local.prometheus.dashboard}?range=5m
Prometheus   {local.prometheus.url}/alerts
metrics      http://{local.server.http_address}/metrics
gRPC         {local.server.address}

measured by the audit: {value(SPEEDUP):.2f} times the speed of exact attention, relative error {value(ERROR):.3f}
bandwidth {value(BANDWIDTH) / 1e9:.1f} GB/s while the device works; in the queue {1000 * value(QUEUE):.2f} ms (p99)

Ctrl-C ends all of it.""",
                flush=True,
            )
            stopped.wait(arguments.seconds or None)


if __name__ == "__main__":
    main()
