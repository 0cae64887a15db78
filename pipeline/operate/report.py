"""The report: one HTML page that needs nothing else, about the tasks in the tables and what failed.

Its numbers are the answers of the queries of the same names. It shows assignments and projects by their ids, and
nothing of a person. What the tables hold is text on the page: the template escapes it, and the page's own
policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from itel_cabinet.pipeline.operate.charts import bar_chart, column_chart, number
from itel_cabinet.pipeline.operate.dead_letters import FailureCount
from itel_cabinet.pipeline.queries import Session, TableMissingError, bind, find
from itel_cabinet.pipeline.reconciliation import Lack, rank_gaps, reconcile
from itel_cabinet.transforms.dead_letters import shorten
from itel_cabinet.transforms.enrichment import COMPLETED

__all__ = ["Report", "gather", "render"]

_QUERIES = ("funnel", "daily", "completion-hours", "open-ages", "open-tasks", "damage", "projects", "quality")
_MOST_ROWS = 10
_IDLE = ("assignment_id", "project_id", "task_status", "last_event_at", "idle_days")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What the page tells: the answers of its queries by name, and the failures, None where nobody asked Kafka.

    ``made_at`` is aware; open tasks are idle until then. ``lacking`` counts the forms that iTel lacks by reason, the
    most frequent first; None where there is no ledger of submissions.
    """

    made_at: datetime
    tables_root: str
    answers: Mapping[str, Sequence[Row]]
    failures: Sequence[FailureCount] | None
    lacking: Sequence[Lack] | None = None


def gather(session: Session, *, tables_root: str, failures: Sequence[FailureCount] | None, now: datetime) -> Report:
    """Ask all that the page tells, of one state of the tables. Raises as :meth:`Session.run` does."""
    answers = {name: _ask(session, name, now) for name in _QUERIES}
    try:
        outcomes = _ask(session, "submission-outcomes", now)
    except TableMissingError:
        return Report(now, tables_root, answers, failures)
    gaps = reconcile(session, statuses=(COMPLETED,)).gaps
    return Report(now, tables_root, {**answers, "submission-outcomes": outcomes}, failures, rank_gaps(gaps))


def _ask(session: Session, name: str, now: datetime) -> list[dict[str, Any]]:
    query = find(name)
    given = {"now": now.isoformat()} if any(p.name == "now" for p in query.parameters) else {}
    result = session.run(query, bind(query, given, now=now))
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def render(report: Report) -> str:
    """The page. Pure: the same report gives the same page."""
    answers, style = report.answers, _asset("report.css")

    def bars(query: str, label: str, value: str) -> Any:
        return bar_chart([(row[label], row[value]) for row in answers[query]])

    daily = {row["day"]: (row["assigned"], row["completed"]) for row in answers["daily"]}
    worst_first = sorted(report.failures or (), key=lambda one: -one.open)
    outcomes = answers.get("submission-outcomes", ())
    failing = [(f"{one.stage}: {one.error_class}", one.open) for one in worst_first if one.open]
    page = _template().render(
        report=report,
        answers=answers,
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        funnel=bars("funnel", "stage", "tasks"),
        daily=column_chart(daily),
        completion=bars("completion-hours", "took", "tasks"),
        open_ages=bars("open-ages", "idle", "tasks"),
        damage=bars("damage", "section", "forms"),
        failures=bar_chart(failing) if failing else None,
        outcomes=bar_chart([(_why(one["outcome"], one["reason"]), one["submissions"]) for one in outcomes]),
        lacking=bar_chart([(_why(one.outcome, one.reason), one.forms) for one in report.lacking or ()]),
        lacking_rows=[
            {
                "outcome": one.outcome,
                "reason": one.reason,
                "forms": one.forms,
                "oldest_at": one.oldest_at,
                "oldest_days": round((report.made_at - one.oldest_at).total_seconds() / 86_400, 1),
            }
            for one in report.lacking or ()
        ],
        failure_rows=[
            {"step": one.stage, "reason": one.error_class, "open": one.open, "replayed": one.replayed}
            for one in worst_first
        ],
        longest_idle=[{column: row[column] for column in _IDLE} for row in answers["open-tasks"][:_MOST_ROWS]],
        most_rows=_MOST_ROWS,
    )
    return page.lstrip()


def _why(outcome: str, reason: str | None) -> str:
    return outcome.replace("_", " ") + (f": {reason}" if reason else "")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = _plain
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return files("itel_cabinet.pipeline.operate").joinpath(name).read_text(encoding="utf-8")


def _plain(value: object, column: str = "") -> str:
    """A value for people: instants to the minute, in UTC; text on one line; an id as it is."""
    match value:
        case int() if column.endswith("_id"):
            return str(value)
        case None:
            return "-"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
        case date():
            return value.isoformat()
        case int() | float():
            return number(value)
        case _:
            return shorten(str(value), 200)
