"""What operators watch a job with - alerts and dashboards - on a real Prometheus that scrapes real jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from itel_cabinet.local.prometheus import promtool, with_durations

MONITORING = Path(__file__).parent.parent / "monitoring"
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("check", "config", "--lint-fatal", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=["rules", "config", "unit tests"],
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MONITORING)
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout
    assert "SUCCESS" in done.stdout


def test_every_alert_says_what_is_wrong_why_and_what_to_do() -> None:
    rules = alert_rules()
    assert len(rules) == 15
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "cause", "cure"}
        assert all(text and "\n" not in text for text in rule["annotations"].values())
        assert "{{ $labels.pipeline }}" in rule["annotations"]["summary"]


def test_every_alert_has_a_unit_test() -> None:
    tested = set(re.findall(r'alertname="(\w+)"', (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")))
    assert tested == {rule["alert"] for rule in alert_rules()}


def test_durations_are_changed_and_nothing_else() -> None:
    given = (
        "groups: [{name: g, rules: [{alert: A, for: 5m, labels: {severity: warning}, annotations: {cause: waits 5m},"
        " expr: 'sum(rate(x_5m[1h] offset 2d)) > 300 or avg_over_time(y{z=\"5m\"}[90s]) == 1'}]}]"
    )
    [rule] = yaml.safe_load(with_durations(given, lambda seconds: seconds / 60))["groups"][0]["rules"]
    assert rule["expr"] == ('sum(rate(x_5m[60000ms] offset 2880000ms)) > 300 or avg_over_time(y{z="5m"}[1500ms]) == 1')
    assert (rule["for"], rule["annotations"]) == ("5000ms", {"cause": "waits 5m"})


def alert_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]
