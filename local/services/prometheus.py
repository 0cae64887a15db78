"""A real Prometheus on this machine, in a folder of its own.

Example::

    with Prometheus.start(Path("prometheus"), rules=Path("monitoring/alerts.yml").read_text()) as prometheus:
        prometheus.watch([9400, 9401])
        prometheus.query("sum(itel_cabinet_records_consumed_total)")
        prometheus.alerts()
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

from itel_cabinet.local.services.artifacts import PROMETHEUS
from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.service import Service

__all__ = ["Alert", "Prometheus", "PrometheusError", "Sample", "promtool", "with_durations"]

_START_SECONDS = 60.0
_CALL_SECONDS = 30.0
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(?<=[\[ :])(\d+)([smhd])\b(?=\]|\s|$|\))")


class PrometheusError(RuntimeError):
    """Prometheus did not start, or refuses what was asked; the text ends with its answer or its log."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer, as of now."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is ``pending`` or ``firing``."""

    name: str
    state: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool; raises ``ArtifactError`` if it was not fetched."""
    command = [str(PROMETHEUS.program("promtool")), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def with_durations(rules: str, change: Callable[[int], float]) -> str:
    """Prometheus rules, each of whose durations - ranges, offsets, ``for`` - is ``change`` of what it was, in seconds.

    Thresholds stay as they are, so that what a rule means is still the rule itself. Pure; comments are lost.
    """
    document = yaml.safe_load(rules)

    def changed(text: str) -> str:
        return _DURATION.sub(lambda found: f"{change(int(found[1]) * _UNITS[found[2]]) * 1000:.0f}ms", text)

    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = changed(rule["expr"])
            if "for" in rule:
                rule["for"] = changed(f" {rule['for']}").strip()
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


@dataclass(eq=False)
class Prometheus(Service):
    """One server whose data, configuration and log (``prometheus.log``) lie in ``folder``.

    It scrapes, and weighs its rules, each ``seconds``. Use :meth:`start`, then ``with`` or :meth:`stop`. It never
    outlives this process, even if that is killed. Methods raise :class:`PrometheusError`. Not thread-safe, but for the
    methods that only ask.
    """

    folder: Path
    seconds: float = 1.0
    port: int = field(default_factory=free_port)
    _process: Guarded | None = field(default=None, repr=False)

    @classmethod
    def start(cls, folder: Path, *, rules: str = "groups: []", seconds: float = 1.0) -> Prometheus:
        """Start on a free port and wait until it serves; raises :class:`PrometheusError`, and ``ArtifactError`` if it
        was not fetched.
        """
        server = cls(folder.absolute(), seconds)
        server.folder.mkdir(parents=True, exist_ok=True)
        server._configure(rules)
        server._begin()
        return server

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "prometheus.log"

    def watch(self, ports: Iterable[int]) -> None:
        """Scrape these ports of this machine from now on, and no others; those at which nothing answers are down."""
        targets = self.folder / "targets.json"
        half = targets.with_suffix(".half")
        half.write_text(json.dumps([{"targets": [f"{HOST}:{port}" for port in ports]}]), encoding="utf-8")
        half.replace(targets)
        self._reload()

    def use_rules(self, rules: str) -> None:
        """Weigh these rules from now on; what the former have found is forgotten."""
        self._configure(rules)
        self._reload()

    def query(self, expression: str) -> list[Sample]:
        """What an expression gives now: its series, or one without labels for a scalar."""
        data = self._get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(series["metric"], float(series["value"][1])) for series in data["result"]]

    def alerts(self) -> list[Alert]:
        """The alerts that are pending or firing as of the last weighing."""
        return [
            Alert(found["labels"]["alertname"], found["state"], found["labels"], found["annotations"])
            for found in self._get("alerts")["alerts"]
        ]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {alert.name for alert in self.alerts() if alert.state == "firing"}

    def stop(self) -> None:
        """End in order (SIGTERM). Idempotent."""
        if self._process is not None:
            self._process.stop()

    def _configure(self, rules: str) -> None:
        (self.folder / "rules.yml").write_text(rules, encoding="utf-8")
        every = f"{self.seconds * 1000:.0f}ms"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "itel-cabinet", "file_sd_configs": [{"files": ["targets.json"]}]}],
        }
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def _begin(self) -> None:
        command = [
            str(PROMETHEUS.program("prometheus")),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ]
        self._process = Guarded(command, log=self.log, cwd=self.folder)
        self._process.wait_until(self._ready, "Prometheus", PrometheusError, _START_SECONDS)

    def _ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=1.0).ok
        except requests.RequestException:
            return False

    def _reload(self) -> None:
        assert self._process is not None
        answer = requests.post(f"{self.url}/-/reload", timeout=_CALL_SECONDS)
        if not answer.ok:
            raise PrometheusError(f"the new configuration is refused: {answer.text.strip()}; {self._process.tail()}")

    def _get(self, what: str, **parameters: str) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=_CALL_SECONDS)
        document = answer.json()
        if document["status"] != "success":
            raise PrometheusError(f"{parameters or what}: {document['error']}")
        return document["data"]
