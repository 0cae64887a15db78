"""The three Grafana dashboards as code: ``python -m monitoring.dashboards`` writes them into ``dashboards/``.

The JSON is made by Grafana's own SDK. What several workers of a job report is added up; of the lag of a partition the
worst is taken, since a worker that has lost it may still report it for a while.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)

__all__ = ["DASHBOARDS", "FOLDER", "render"]

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH = 24


@dataclass(frozen=True)
class Graph:
    """Lines over time: ``queries`` by legend. Above ``limit`` is red."""

    title: str
    meaning: str
    unit: str
    queries: Mapping[str, str]
    limit: float | None = None
    stacked: bool = False

    width = 8
    height = 8

    def panel(self) -> Any:
        panel = (
            timeseries.Panel()
            .min(0)
            .fill_opacity(30 if self.stacked else 0)
            .line_width(1)
            .legend(
                common.VizLegendOptions()
                .show_legend(True)
                .display_mode(LegendDisplayMode.TABLE)
                .placement(LegendPlacement.BOTTOM)
                .calcs(["lastNotNull", "max"])
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        if self.stacked:
            panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        if self.limit is not None:
            panel = panel.thresholds(_limits([("green", None), ("red", self.limit)])).thresholds_style(
                common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
            )
        return panel


@dataclass(frozen=True)
class Number:
    """The latest value of each series, coloured by ``steps``: from which value on which colour."""

    title: str
    meaning: str
    unit: str
    queries: Mapping[str, str]
    steps: tuple[tuple[str, float | None], ...]
    words: Mapping[int, str] | None = None

    width = 6
    height = 5

    def panel(self) -> Any:
        panel = (
            stat.Panel()
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .color_mode(BigValueColorMode.BACKGROUND)
            .thresholds(_limits(list(self.steps)))
        )
        if self.words:
            options = {str(value): ValueMappingResult(text=text) for value, text in self.words.items()}
            panel = panel.mappings([ValueMap(options=options)])
        return panel


def _limits(steps: list[tuple[str, float | None]]) -> ThresholdsConfig:
    colours = [Threshold(value=value, color=colour) for colour, value in steps]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(colours)


Rows = Mapping[str, tuple[Graph | Number, ...]]


def _dashboard(uid: str, title: str, meaning: str, rows: Rows) -> Dashboard:
    dashboard = (
        Dashboard(f"iTel Cabinet: {title}")
        .uid(f"itel-cabinet-{uid}")
        .description(meaning)
        .tags(["itel-cabinet"])
        .editable()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("pipeline")
            .label("Job")
            .datasource(_SOURCE)
            .query("label_values(itel_cabinet_heartbeat_timestamp_seconds, pipeline)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
    )
    ids = itertools.count(1)  # links to a panel, and its alerts, go by its number
    for name, panels in rows.items():
        dashboard = dashboard.with_row(Row(name).id(next(ids)))
        for one in panels:
            panel = (
                one.panel().id(next(ids)).title(one.title).description(one.meaning).unit(one.unit).datasource(_SOURCE)
            )
            panel = panel.span(min(one.width, _WIDTH)).height(one.height)
            for legend, query in one.queries.items():
                panel = panel.with_target(prometheus.Dataquery().expr(query).legend_format(legend).datasource(_SOURCE))
            dashboard = dashboard.with_panel(panel)
    return dashboard


def _series(metric: str, *matchers: str) -> str:
    """A metric of the jobs that were chosen, and of what else is asked for: ``api="itel"``."""
    chosen = ",".join(('pipeline=~"$pipeline"', *matchers))
    return f"itel_cabinet_{metric}{{{chosen}}}"


def _rate(metric: str, by: str, *matchers: str) -> str:
    """How fast a counter rises, a second, added up by labels."""
    return f"sum by ({by}) (rate({_series(metric, *matchers)}[$__rate_interval]))"


def _per_minute(metric: str, by: str, *matchers: str) -> str:
    return f"{_rate(metric, by, *matchers)} * 60"


def _quantile(percent: int, histogram: str, by: str, *matchers: str) -> str:
    return f"histogram_quantile(0.{percent}, {_rate(f'{histogram}_bucket', f'{by}, le', *matchers)})"


def _quantiles(histogram: str, by: str, legend: str, *matchers: str) -> dict[str, str]:
    return {f"{legend} p{percent}": _quantile(percent, histogram, by, *matchers) for percent in (50, 95, 99)}


def _http(api: str) -> tuple[Graph | Number, ...]:
    """What there is to know of one API."""
    only = f'api="{api}"'
    return (
        Graph(
            "Calls per minute",
            "Calls, each with all its tries.",
            "cpm",
            {"{{pipeline}}": _per_minute("http_call_seconds_count", "pipeline", only)},
        ),
        Graph(
            "Call latency",
            "Of calls, all tries and pauses between them included.",
            "s",
            _quantiles("http_call_seconds", "pipeline", "{{pipeline}}", only),
        ),
        Graph(
            "Calls at once",
            "How many calls may be under way at once: as many as the API bears, --http_concurrency at most.",
            "none",
            {"{{pipeline}}": f"sum by (pipeline) ({_series('http_concurrency', only)})"},
        ),
        Graph(
            "Tries by outcome",
            "Single requests: the class of the answer's status, or how they failed.",
            "reqps",
            {"{{outcome}}": _rate("http_tries_total", "outcome", only)},
            stacked=True,
        ),
        Graph(
            "Errors per minute",
            "Calls without a good answer after all tries, tries made again, and tries put off by the API's own limit.",
            "cpm",
            {
                "{{pipeline}} failed": _per_minute("http_calls_failed_total", "pipeline", only),
                "{{pipeline}} retries": _per_minute("http_retries_total", "pipeline", only),
                "{{pipeline}} limited": _per_minute("http_limited_total", "pipeline", only),
            },
        ),
        Number(
            "Circuit breaker",
            "Open: the API is not called, since most tries failed.",
            "none",
            {"{{pipeline}}": f"max by (pipeline) ({_series('breaker_open', only)})"},
            (("green", None), ("red", 1)),
            words={0: "closed", 1: "open"},
        ),
    )


_LAG = f"max by (pipeline, topic, partition) ({_series('reader_lag_records')})"
_ACCEPTED = _series("submissions_total", 'outcome=~"accepted|duplicate"')
_SUBMITTED = _series("submissions_total")
_CACHED = _rate("lookups_cached_total", "pipeline")
_LOOKUPS = _rate("lookup_seconds_count", "pipeline")
_HEARTBEAT = _series("heartbeat_timestamp_seconds")
_TRIGGER = 'pipeline="trigger"'
_DELTA = 'sink=~".*(tracking|forms|attachments)"'

OVERVIEW = _dashboard(
    "overview",
    "Plugin Overview",
    "Whether the jobs live and keep up, and where records end that fail or are skipped.",
    {
        "Health": (
            Number(
                "Workers alive",
                "Processes whose heartbeat has moved within 2 minutes.",
                "none",
                {"{{pipeline}}": f"count by (pipeline) (changes({_HEARTBEAT}[2m]) > 0)"},
                (("red", None), ("green", 1)),
            ),
            Number(
                "Heartbeat age",
                "Since the job last did anything. It does something each half second, even if it has nothing to do.",
                "s",
                {"{{pipeline}}": f"time() - max by (pipeline) ({_HEARTBEAT})"},
                (("green", None), ("yellow", 60), ("red", 120)),
            ),
            Number(
                "Consumer lag",
                "Records that are still to be read.",
                "short",
                {"{{pipeline}}": f"sum by (pipeline) ({_LAG})"},
                (("green", None), ("red", 1_000)),
            ),
            Number(
                "Outages waited for",
                "What the job waits for now; it waits up to --outage_patience_seconds and then ends.",
                "none",
                {
                    "{{pipeline}}": f"sum by (pipeline) ({_series('waiting')}) or 0 * max by (pipeline) ({_HEARTBEAT})",
                },
                (("green", None), ("red", 1)),
            ),
        ),
        "Flow": (
            Graph(
                "Events triggered per hour",
                "Messages that the trigger job has published, by topic; its dead letters are among them.",
                "short",
                {"{{topic}}": f"{_rate('messages_published_total', 'topic', _TRIGGER)} * 3600"},
            ),
            Graph(
                "Records consumed",
                "Read from the input topic.",
                "cps",
                {"{{pipeline}}": _rate("records_consumed_total", "pipeline")},
            ),
            Graph(
                "Lag per partition",
                "Records between reader and end.",
                "short",
                {"{{pipeline}} {{topic}}/{{partition}}": _LAG},
                limit=1_000,
            ),
            Graph(
                "Freshness",
                "Age of a bundle's oldest record, by Kafka's time, when what came of it was durable.",
                "s",
                _quantiles("freshness_seconds", "pipeline, sink", "{{pipeline}} {{sink}}"),
                limit=300,
            ),
            Graph(
                "Skipped, by reason",
                "Valid records that the job has nothing to do with.",
                "cps",
                {"{{reason}}": _rate("records_skipped_total", "reason")},
                stacked=True,
            ),
            Graph(
                "Dead letters, by stage and class",
                "Records that could not go on; itel-cabinet dead-letters list has them.",
                "cps",
                {"{{stage}}: {{error_class}}": _rate("dead_letters_total", "stage, error_class")},
                stacked=True,
            ),
            Graph(
                "Open dead letters",
                "Neither replayed nor deleted yet, of the newest 10,000 messages of each partition; and those that "
                "retention deleted before anyone replayed them.",
                "short",
                {
                    "{{pipeline}} open": f"max by (pipeline) ({_series('open_letters')})",
                    "{{pipeline}} deleted": f"sum by (pipeline) ({_series('letters_lost_total')})",
                },
            ),
        ),
        "Kafka": (
            Graph(
                "Published",
                "Messages that the broker has confirmed, by topic.",
                "cps",
                {"{{pipeline}} {{topic}}": _rate("messages_published_total", "pipeline, topic")},
            ),
            Graph(
                "Publish failures per minute",
                "Messages that the broker refused or did not confirm.",
                "cpm",
                {"{{pipeline}} {{topic}}": _per_minute("publish_failures_total", "pipeline, topic")},
            ),
            Graph(
                "Offsets committed",
                "How fast the group's offsets move. On Flink they move when a checkpoint is complete.",
                "cps",
                {
                    "{{pipeline}} {{topic}}": "sum by (pipeline, topic) (max by (pipeline, topic, partition) "
                    f"(deriv({_series('committed_offset')}[$__rate_interval])))"
                },
            ),
            Graph(
                "Offset commits given up, records lost",
                "Commits make up for those that failed. Lost: deleted by retention before they were read.",
                "short",
                {
                    "{{pipeline}} commits given up": f"sum by (pipeline) ({_series('offset_commit_failures_total')})",
                    "{{pipeline}} records lost": f"sum by (pipeline) ({_series('records_lost_total')})",
                    "{{pipeline}} offsets set {{way}}": f"sum by (pipeline, way) ({_series('offsets_moved_total')})",
                    "{{pipeline}} headers unreadable": f"sum by (pipeline) ({_series('headers_unreadable_total')})",
                },
            ),
        ),
    },
)

TRACKING = _dashboard(
    "tracking",
    "Tracking",
    "The Delta branch (jobs tracking and cabinet): tables, photos, and the lookups in ClaimX.",
    {
        "Delta": (
            Graph(
                "Delta writes per minute",
                "Versions of the table made.",
                "cpm",
                {"{{table}}": _per_minute("commits_total", "table")},
            ),
            Graph("Rows written", "Rows committed.", "cps", {"{{table}}": _rate("rows_written_total", "table")}),
            Graph(
                "Write errors per minute",
                "Tries at a commit that failed, and those decided again since another writer came first.",
                "cpm",
                {
                    "{{table}} failed": _per_minute("commit_failures_total", "table"),
                    "{{table}} conflicts": _per_minute("commit_conflicts_total", "table"),
                },
            ),
            Graph(
                "Commit latency",
                "Of a bundle's commit, conflicts and outages included.",
                "s",
                _quantiles("commit_seconds", "table", "{{table}}"),
            ),
            Graph(
                "Read again",
                "Dropped: rows that the table has, of records read again. Late: below the fence, but missing. "
                "Suppressed: of what was erased.",
                "cps",
                {
                    "{{table}} dropped": _rate("rows_replayed_total", "table"),
                    "{{table}} late": _rate("records_late_total", "table"),
                    "{{table}} suppressed": _rate("rows_suppressed_total", "table"),
                },
            ),
            Graph(
                "Freshness, p95",
                "Age of a bundle's oldest record when its rows were committed.",
                "s",
                {"{{sink}}": _quantile(95, "freshness_seconds", "sink", _DELTA)},
                limit=300,
            ),
            Graph(
                "Forms, by state",
                "Those with warnings hold something that could not be read or is not known.",
                "cps",
                {
                    "{{state}}": _rate("forms_total", "state"),
                    "unknown: {{question}}": _rate("unknown_questions_total", "question"),
                },
            ),
            Graph(
                "Photos, by outcome",
                "stored, known, or the reason why not.",
                "cps",
                {"{{outcome}}": _rate("photos_total", "outcome")},
                stacked=True,
            ),
        ),
        "ClaimX": (
            Graph(
                "Lookup latency",
                "Of a task's lookup, cached ones and outages included.",
                "s",
                _quantiles("lookup_seconds", "pipeline", "{{pipeline}}"),
            ),
            Graph(
                "Cache hits",
                "The share of lookups that the cache answered.",
                "percentunit",
                {"{{pipeline}}": f"{_CACHED} / {_LOOKUPS}"},
            ),
            *_http("claimx"),
        ),
    },
)

API = _dashboard(
    "api",
    "API",
    "The iTel branch (jobs api and cabinet): what becomes of submissions.",
    {
        "Submissions": (
            Number(
                "Success rate",
                "The share of the last hour's submissions that iTel has, those included that it had before.",
                "percentunit",
                {
                    "{{pipeline}}": f"sum by (pipeline) (increase({_ACCEPTED}[1h])) "
                    f"/ sum by (pipeline) (increase({_SUBMITTED}[1h]))"
                },
                (("red", None), ("yellow", 0.95), ("green", 0.99)),
            ),
            Graph(
                "Submissions per minute, by outcome",
                "accepted, duplicate, unchanged, or the error's class.",
                "cpm",
                {"{{outcome}}": _per_minute("submissions_total", "outcome")},
                stacked=True,
            ),
            Graph(
                "Forms that iTel lacks",
                "Completed forms of the last 7 days without a success in the ledger, by what became of the last try; "
                "itel-cabinet reconcile has them.",
                "short",
                {"{{outcome}}": f"max by (outcome) ({_series('unreconciled_forms')})"},
            ),
            Graph(
                "Age of the oldest",
                "How long ago the event of the oldest form was that iTel lacks; 0 for none.",
                "s",
                {
                    "{{outcome}}": f"time() - min by (outcome) "
                    f"({_series('oldest_unreconciled_form_timestamp_seconds')} > 0) "
                    f"or max by (outcome) ({_series('unreconciled_forms')}) * 0"
                },
                limit=3_600,
            ),
            Graph(
                "Lookups for the body",
                "What the contract needs of ClaimX's exports: found, missing, or a link that is not resolved.",
                "cpm",
                {"{{lookup}} {{outcome}}": _per_minute("contract_lookups_total", "lookup, outcome")},
            ),
            Number(
                "Contract",
                "Which one the processes run by; two at a time only while one is being replaced.",
                "none",
                {
                    "{{contract}} {{version}}": f"count by (contract, version) ({_series('contract_info')})",
                },
                (("green", None),),
            ),
            Graph(
                "A second endpoint",
                "What it says of submissions, after what iTel says of them.",
                "cpm",
                {"{{itel}}, then {{shadow}}": _per_minute("shadow_submissions_total", "itel, shadow")},
            ),
            Graph(
                "Results published",
                "By topic: successes and errors.",
                "cps",
                {"{{topic}}": _rate("messages_published_total", "topic")},
            ),
            Graph(
                "Freshness, p95",
                "Age of a record when iTel had accepted its form.",
                "s",
                {"{{pipeline}}": _quantile(95, "freshness_seconds", "pipeline", 'sink="itel"')},
                limit=300,
            ),
        ),
        "iTel's API": _http("itel"),
    },
)

DASHBOARDS = {"overview": OVERVIEW, "tracking": TRACKING, "api": API}
"""By the name of their file."""


def render(dashboard: Dashboard) -> str:
    """The JSON that Grafana imports."""
    return str(JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build())) + "\n"


if __name__ == "__main__":
    for name, one in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(render(one), encoding="utf-8")
