"""The commands `itel-cabinet lag` and `itel-cabinet status`: see docs/operations.md."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from itel_cabinet.pipeline.commands import shared
from itel_cabinet.pipeline.commands.printing import make_console, print_json
from itel_cabinet.pipeline.commands.shared import (
    AsJson,
    CommandError,
    KafkaConfig,
    Servers,
    StorageOptions,
    asking,
    client_settings,
    tables_at,
)
from itel_cabinet.pipeline.jobs import JOB_DEFAULTS, Job
from itel_cabinet.pipeline.topics import ITEL_ERRORS

if TYPE_CHECKING:
    from itel_cabinet.pipeline.operate import GroupView, Subject

__all__ = ["lag", "status"]

OfGroup = Annotated[str | None, typer.Option("--consumer_group", "--group", help="Default: the job's.")]
OfTopic = Annotated[str | None, typer.Option("--input_topic", "--topic", help="Default: the job's.")]
Epoch = Annotated[int, typer.Option("--topic_epoch", min=0, help="As the job has it.")]
Threshold = Annotated[int, typer.Option("--threshold", min=0, help="More records behind than this are too many.")]
Watch = Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")]
Every = Annotated[float, typer.Option("--every", min=0.1, max=86_400, help="Seconds between two looks of --watch.")]

# What is shown and printed as JSON, and the exit status that it amounts to.
Screen = tuple[RenderableType, Any, int]


def lag(
    bootstrap_servers: Servers,
    jobs: Annotated[list[Job] | None, typer.Argument(metavar="[JOB]...", help="Default: cabinet.")] = None,
    consumer_group: OfGroup = None,
    input_topic: OfTopic = None,
    threshold: Threshold = 1000,
    watch: Watch = False,
    every: Every = 5.0,
    topic_epoch: Epoch = 0,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> int:
    """Show how far jobs are behind: what a group has committed, where each partition ends, and what lies between.

    Moves no group's offsets. Exit status 1 if a job is behind by more than --threshold.
    """
    from itel_cabinet.pipeline.operate import GroupView

    chosen = list(dict.fromkeys(jobs or [Job.CABINET]))
    if len(chosen) > 1 and (consumer_group or input_topic):
        option = "--consumer_group" if consumer_group else "--input_topic"
        raise CommandError(f"{option}: goes with one JOB: ask for each job by itself", wrong_use=True)
    client = client_settings(bootstrap_servers, kafka_config)
    views: dict[str, GroupView] = {}

    def look() -> Screen:
        with asking(bootstrap_servers):
            return _lag_screen(views, threshold)

    with ExitStack() as open_views:
        for job in chosen:
            group, topic = _names(job, consumer_group, input_topic)
            with asking(bootstrap_servers):
                view = GroupView(client, group, topic, epoch=topic_epoch, timeout=shared.BROKER_SECONDS)
            views[job.value] = open_views.enter_context(closing(view))
        return _shown(look, watch=watch, every=every, as_json=as_json)


def _names(job: Job, consumer_group: str | None, input_topic: str | None) -> tuple[str, str]:
    defaults = JOB_DEFAULTS[job]
    return consumer_group or defaults["consumer_group"], input_topic or defaults["input_topic"]


def _lag_screen(views: dict[str, GroupView], threshold: int) -> Screen:
    from itel_cabinet.pipeline.commands.lag_view import lag_report, lag_view

    reports = []
    for job, view in views.items():
        topic, positions = view.positions()
        ages = view.ages(positions, time.time())
        reports.append(lag_report(job, view.group, topic, positions, ages, threshold))
    return lag_view(reports), reports, int(any(report["behind"] for report in reports))


def status(
    job: Annotated[Job, typer.Argument(help="Which job.")],
    bootstrap_servers: Servers,
    tables_root: Annotated[
        str | None, typer.Option("--tables_root", metavar="URI", help="The job's tables, if they shall be looked at.")
    ] = None,
    storage_options: StorageOptions = "{}",
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics_url",
            metavar="http://HOST:PORT",
            help="Where a process of the job answers, as its --metrics_port says; may be repeated.",
        ),
    ] = None,
    consumer_group: OfGroup = None,
    input_topic: OfTopic = None,
    dead_letter_topic: Annotated[str | None, typer.Option("--dead_letter_topic", help="Default: the job's.")] = None,
    itel_errors_topic: Annotated[str | None, typer.Option("--itel_errors_topic", help="Default: the job's.")] = None,
    threshold: Threshold = 1000,
    max_age_seconds: Annotated[
        float, typer.Option("--max_age_seconds", min=0, help="An unread record older than this is too old.")
    ] = 300.0,
    window_seconds: Annotated[
        float,
        typer.Option(
            "--window_seconds",
            min=0.1,
            max=3600,
            help="How long to watch; three times as long before a job whose process answers counts as stuck.",
        ),
    ] = 10.0,
    watch: Watch = False,
    every: Every = 5.0,
    topic_epoch: Epoch = 0,
    kafka_config: KafkaConfig = "{}",
    as_json: AsJson = False,
) -> int:
    """Show on one screen whether a job is well: healthy, lagging, stuck, dead, waiting or unknown, why, and what to do.

    Looks at its group, its tables, its dead letters and its processes; changes nothing. Exit status 1 unless it is
    healthy.
    """
    from itel_cabinet.pipeline.commands.status_view import status_report, status_view
    from itel_cabinet.pipeline.operate import Limits, Observer, judge

    subject = _subject(
        job, bootstrap_servers, consumer_group, input_topic,
        dead_letter_topic, itel_errors_topic, tables_root, storage_options, metrics_url or [],
    )  # fmt: skip
    client = client_settings(bootstrap_servers, kafka_config)
    limits = Limits(threshold, max_age_seconds)
    with asking(bootstrap_servers):
        observer = Observer(
            subject, client, window_seconds=window_seconds, epoch=topic_epoch, timeout=shared.BROKER_SECONDS
        )
    looks, waiting = 0, Console(stderr=True)

    def look() -> Screen:
        nonlocal looks
        looks += 1
        if looks > 1:
            seen = observer.again()
        elif waiting.is_terminal:
            with waiting.status(f"watching for {window_seconds:g} s ..."):
                seen = observer.watch()
        else:
            seen = observer.watch()
        found = judge(seen, limits)
        now = datetime.now(UTC)
        report = status_report(seen, found, now)
        return status_view(seen, found, now), report, found.health.exit_status

    with closing(observer):
        return _shown(look, watch=watch, every=every, as_json=as_json)


def _subject(
    job: Job,
    bootstrap_servers: str,
    consumer_group: str | None,
    input_topic: str | None,
    dead_letter_topic: str | None,
    itel_errors_topic: str | None,
    tables_root: str | None,
    storage_options: str,
    metrics_urls: Sequence[str],
) -> Subject:
    from itel_cabinet.io.http import check_url
    from itel_cabinet.pipeline.operate import Subject
    from itel_cabinet.pipeline.tables import tables_of_job

    for url in metrics_urls:
        try:
            check_url(url)
        except ValueError as error:
            raise CommandError(f"--metrics_url: {error}", wrong_use=True) from None
    written = tables_of_job(job)
    if tables_root and not written:
        raise CommandError(f"--tables_root: the job {job.value} writes no tables: leave it out", wrong_use=True)
    tables = None
    if tables_root:
        tables = {name: spec for name, spec in tables_at(tables_root, storage_options).items() if name in written}
    errors = [dead_letter_topic or JOB_DEFAULTS[job]["dead_letter_topic"]]
    if job.calls_itel:
        errors.append(itel_errors_topic or ITEL_ERRORS)
    group, topic = _names(job, consumer_group, input_topic)
    urls = dict.fromkeys(url.rstrip("/").removesuffix("/healthz").removesuffix("/metrics") for url in metrics_urls)
    return Subject(
        job=job.value,
        group=group,
        topic=topic,
        bootstrap_servers=bootstrap_servers,
        error_topics=tuple(dict.fromkeys(errors)),
        metrics_urls=tuple(urls),
        tables=tables,
    )


def _shown(look: Callable[[], Screen], *, watch: bool, every: float, as_json: bool) -> int:
    """Print one look, or look after look until Ctrl-C; the exit status of the last one.

    Only the first look may be refused: later, a watch waits for what is away.
    """
    console = make_console()
    view, report, exit_status = look()
    if not watch:
        print_json(report) if as_json else console.print(view)
        return exit_status
    live = console.is_terminal and not as_json
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    try:
        with Live(console=console, auto_refresh=False) if live else nullcontext() as screen:
            while True:
                if screen is not None:
                    screen.update(view, refresh=True)
                elif as_json:
                    print(json.dumps(report), flush=True)
                else:
                    console.print(view)
                time.sleep(every)
                try:
                    view, report, exit_status = look()
                except CommandError as refused:
                    view, report, exit_status = Text(refused.message), {"error": refused.message}, refused.exit_code
    except KeyboardInterrupt:
        return exit_status
