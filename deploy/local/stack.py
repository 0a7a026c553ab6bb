"""Server, Prometheus and load on this machine: what the local stack, its test and the test of the alerts start.

Everything listens on 127.0.0.1, on ports of the system's choice, and ends with the program that started it.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Callable, Dict, List, Optional, Tuple

import yaml

SERVER = "server/attention_server"
BENCH = "client/attention_bench"
PROMETHEUS_FOLDER = "deploy/prometheus"

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def eventually(condition: Callable[[], object], what: str, seconds: float = 120) -> object:
    """The condition's first value that is true; an error that says what did not happen in a time that is ample."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


class Process:
    """A program whose output goes to a file."""

    def __init__(self, arguments: List[str], log: str):
        self.log_path = log
        with open(log, "wb") as file:
            # Not after a thread was started: what runs between fork and exec is Python.
            self.process = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
                arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=_end_with_parent
            )

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args[0]} ended with {self.process.returncode}:\n{self.log()[-4000:]}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url: str) -> Tuple[int, str]:
    """Status and body; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Server(Process):
    """An attention server that is ready."""

    def __init__(self, folder: str, flags: List[str], binary: str = SERVER, ports: Tuple[int, int] = (0, 0)):
        os.makedirs(folder, exist_ok=True)
        port_file = os.path.join(folder, "ports")
        if os.path.exists(port_file):
            os.remove(port_file)
        arguments = [binary, f"--listen=127.0.0.1:{ports[0]}", f"--http_port={ports[1]}", f"--port_file={port_file}"]
        super().__init__(arguments + flags, os.path.join(folder, "server.log"))

        def started():
            self.check_alive()
            return os.path.exists(port_file)

        eventually(started, "the server serves")
        with open(port_file, encoding="utf-8") as file:
            self.port, self.http_port = (int(line) for line in file)
        self.address = f"127.0.0.1:{self.port}"
        self.http_address = f"127.0.0.1:{self.http_port}"


class Load(Process):
    """attention_bench against a server, until it is stopped."""

    def __init__(self, server: Server, log: str, flags: List[str]):
        super().__init__([BENCH, f"--server={server.address}", "--seconds=86400", *flags], log)


class Prometheus(Process):
    """The real one, with the rules and console of this repository."""

    def __init__(self, folder: str, targets: Dict[str, List[str]], scrape_interval: str, rules: Optional[List[str]] = None):
        os.makedirs(folder, exist_ok=True)
        with open(f"{PROMETHEUS_FOLDER}/prometheus.yml", encoding="utf-8") as file:
            config = yaml.safe_load(file)
        config["global"] = {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval}
        config["rule_files"] = [
            os.path.abspath(rule) for rule in rules or [f"{PROMETHEUS_FOLDER}/{name}" for name in config["rule_files"]]
        ]
        config["scrape_configs"] = [
            {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
        ]
        path = os.path.join(folder, "prometheus.yml")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.dashboard = f"{self.url}/consoles/santa.html"
        super().__init__(
            [
                "prometheus",
                f"--config.file={path}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
                f"--web.console.templates={os.path.abspath(PROMETHEUS_FOLDER)}/consoles",
            ],
            os.path.join(folder, "prometheus.log"),
        )

        def ready():
            self.check_alive()
            return fetch(f"{self.url}/-/ready")[0] == 200

        eventually(ready, "Prometheus is ready")

    def query(self, expression: str) -> List[Tuple[Dict[str, str], float]]:
        """The labels and values of an instant query."""
        status, body = fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        if status != 200:
            raise ValueError(f"{expression}: {status} {body}")
        return [(one["metric"], float(one["value"][1])) for one in json.loads(body)["data"]["result"]]

    def value(self, expression: str) -> Optional[float]:
        """That of an expression with one series or none; None for none and for NaN."""
        found = self.query(expression)
        return found[0][1] if found and found[0][1] == found[0][1] else None


def stop(processes: List[Process], number: int = signal.SIGTERM) -> None:
    """All of them, the last one first."""
    for process in reversed(processes):
        process.stop(number)
