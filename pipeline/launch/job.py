"""Check what is known to go wrong, then run a job: ``python -m itel_cabinet.pipeline.launch JOB [options]``."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from types import FrameType

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TypeOptions
from apache_beam.runners.runner import PipelineResult
from confluent_kafka import KafkaException

from itel_cabinet.io.delta import TableRefused, TableSpec, create_table
from itel_cabinet.io.itel import ItelSettings
from itel_cabinet.io.kafka import Cluster, has_committed_offsets, resolved
from itel_cabinet.io.objects import ObjectStoreError, get_objects
from itel_cabinet.io.secrets import UnresolvedSecret
from itel_cabinet.io.worker import STOP, OutageError, RefusedError, check_port, describe_error, prepare
from itel_cabinet.pipeline.graph import build
from itel_cabinet.pipeline.launch.arguments import parse_arguments
from itel_cabinet.pipeline.launch.direct_runner import get_direct_runner
from itel_cabinet.pipeline.launch.flink import (
    NotRunningError,
    check_job_server,
    on_flink,
    refused,
    tune,
    wait_until_running,
    waits,
)
from itel_cabinet.pipeline.launch.templates import with_template
from itel_cabinet.pipeline.options import Job, OptionError, Settings
from itel_cabinet.pipeline.refusals import kafka_refusal, table_refusal
from itel_cabinet.pipeline.steps import NAMESPACE
from itel_cabinet.pipeline.wiring import Parts
from itel_cabinet.transforms.triggers import Rules, RulesError

__all__ = ["JobFailedError", "LaunchError", "check", "launch", "main"]

_LOGGER = logging.getLogger(__name__)

_CHECK_SECONDS = 10.0
# Counters of what Beam does itself, which Prism hands out beside the others.
_BEAMS_OWN = "beam"


class LaunchError(RefusedError):
    """Something the job needs is not there; the message is one line that names the option and says what to do."""


class JobFailedError(RefusedError):
    """The job ended early; the message is one line. A restart goes on from the group's offsets."""


def check(settings: Settings) -> None:
    """Refuse what is known to go wrong, within 30 seconds. Creates missing tables. Raises LaunchRefused."""
    parts = Parts(settings)
    try:
        settings.claimx_connection().check()
        if settings.job.calls_itel and isinstance(parts.itel_settings, ItelSettings):
            settings.itel_connection().check()
        elif settings.job.calls_itel:
            _check_folder(parts)
        if settings.fetches_media:
            get_objects(settings.media_settings().store).check()
        _check_kafka(settings, parts)
        if settings.job.writes_tables:
            for spec in _tables(parts):
                create_table(spec)
    except UnresolvedSecret as error:
        raise LaunchError(str(error)) from None
    except KafkaException as error:
        raise LaunchError(kafka_refusal(error, settings.bootstrap_servers)) from None
    except ObjectStoreError as error:
        raise LaunchError(f"--media_root: {error}: give a folder or object-store URI that can be written") from None
    except (TableRefused, OutageError) as error:
        raise LaunchError(table_refusal(error)) from None


def _rules(parts: Parts) -> Rules:
    try:
        return parts.rules
    except RulesError as error:
        raise LaunchError(f"--triggers: {error}") from None
    except OSError as error:
        raise LaunchError(f"--triggers: {parts.settings.triggers} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LaunchError(f"--triggers: {parts.settings.triggers} is not UTF-8 text") from None


def _tables(parts: Parts) -> Iterable[TableSpec]:
    try:
        return parts.tables.values()
    except ValueError as error:
        raise LaunchError(f"--partition_by: {describe_error(error)}") from None


def _check_folder(parts: Parts) -> None:
    folder = parts.itel_settings
    assert not isinstance(folder, ItelSettings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LaunchError(f"--itel_url: {folder} cannot be written: {error.strerror}: give another folder") from None


def _check_kafka(settings: Settings, parts: Parts) -> None:
    try:
        client = resolved(parts.source.client)
    except UnresolvedSecret as error:
        raise LaunchError(f"--kafka_config: {error}") from None
    known = Cluster(client, timeout=_CHECK_SECONDS).names()
    needed = {"input_topic": {settings.input_topic}, "dead_letter_topic": {settings.dead_letter_topic}}
    if settings.job.calls_itel:
        needed |= {
            "itel_errors_topic": {settings.itel_errors_topic},
            "itel_success_topic": {settings.itel_success_topic},
        }
    if settings.job.writes_tables and settings.tracking_success_topic:
        needed["tracking_success_topic"] = {settings.tracking_success_topic}
    if settings.job is Job.TRIGGER:
        rules = _rules(parts)
        needed["output_topic"] = {settings.output_topic} if settings.output_topic else set(rules.topics)
    for option, topics in needed.items():
        for topic in sorted(topics - known):
            raise LaunchError(
                f"--{option}: topic {topic} does not exist at {settings.bootstrap_servers}: "
                "create it with `itel-cabinet topics create`"
            )
    if settings.start_offset == "latest" and not has_committed_offsets(parts.source):
        raise LaunchError(
            f"--start_offset=latest: the group {settings.consumer_group} has no offsets yet, so what arrives before "
            "the first commit would be lost by a restart: start with earliest, or set the group's offsets first"
        )


def _check_port(port: int) -> None:
    try:
        check_port(port)
    except OSError as error:
        raise LaunchError(f"--metrics_port: {port} cannot be used ({error.strerror}): give another one") from None


def launch(settings: Settings, beam_options: PipelineOptions) -> dict[str, int]:
    """Run a job until it ends: caught up, stopped by SIGTERM or SIGINT, or failed (JobFailed).

    Returns the job's counters: ``skipped:REASON``, ``failed:STAGE:CLASS``, ``STEP: NAME``. On DirectRunner the job runs
    in this process; ``DirectRunner`` always means Beam's FnApiRunner here, so nothing is fetched and nothing depends on
    what is installed.
    """
    standard = beam_options.view_as(StandardOptions)
    standard.streaming = True
    # Batches are plain lists; checking each against a type hint would cost more than the work on it.
    beam_options.view_as(TypeOptions).runtime_type_check = False
    runner = (
        get_direct_runner()
        if (standard.runner or "DirectRunner") in ("DirectRunner", "FnApiRunner")
        else standard.runner
    )
    try:
        pipeline = beam.Pipeline(runner=runner, options=beam_options)
    except ValueError as error:
        raise LaunchError(f"--runner: {describe_error(error)}") from None
    build(pipeline, settings)
    if on_flink(beam_options):
        return _submit(pipeline, beam_options)
    with _stopping_on_signals():
        try:
            result = pipeline.run()
            result.wait_until_finish()
        except Exception as error:
            refused = find_refusal(error)
            if refused is None:
                _LOGGER.error("an error of the program: %s", error)
            raise JobFailedError(str(refused or _last_line(error))) from error
    return _counters(result)


def _submit(pipeline: beam.Pipeline, options: PipelineOptions) -> dict[str, int]:
    """Hand a job to the cluster, where it goes on without this process; its counters if it was waited for."""
    try:
        result = pipeline.run()
        wait_until_running(result, options)
        if not waits(options):
            return {}
        result.wait_until_finish()
    except NotRunningError as error:
        raise JobFailedError(str(error)) from None
    except grpc.RpcError as error:
        raise JobFailedError(refused(error, options)) from None
    except Exception as error:
        raise JobFailedError(_last_line(error)) from error
    return _counters(result)


def _counters(result: PipelineResult) -> dict[str, int]:
    """The job's counters: skips and failures by reason, what a source or sink counts by its step."""
    counts: Counter[str] = Counter()
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        if counter.key.metric.namespace == _BEAMS_OWN:
            continue
        if counter.key.metric.namespace != NAMESPACE:
            # Prism does not tell the step of most.
            step = (counter.key.step or "").partition("/")[0]
            name = f"{step}: {name}" if step else name
        counts[name] += counter.attempted if counter.committed is None else counter.committed
    return dict(counts)


class _stopping_on_signals:
    """SIGTERM and SIGINT ask the readers to stop; the bundle under way is finished and its offsets committed."""

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def _stop(number: int, _frame: FrameType | None) -> None:
        _LOGGER.info("%s: finishing what is under way", signal.Signals(number).name)
        STOP.set()


def find_refusal(error: BaseException) -> RefusedError | None:
    """The outermost RefusedError that ``error`` is or comes from.

    Beam raises a copy of a DoFn's error, with the step's name behind its text; the original is the copy's context.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, RefusedError):
        found = found.__cause__ or found.__context__
    while found is not None and type(found.__context__) is type(found):
        found = found.__context__
    return found


def _last_line(error: Exception) -> str:
    """The error in one line. What comes from a worker of another process has that worker's traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    return describe_error(RuntimeError(lines[-1] if lines else error))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 failed, 2 wrong use; errors are one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # A refusal is one line: nothing is logged before the job starts.
    logging.basicConfig(level=logging.CRITICAL, format="%(asctime)s %(levelname)s %(message)s", force=True)
    # Beam logs a failed bundle's traceback several times over; the one line that matters is printed at the end.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        if not arguments:
            raise OptionError(f"the job is missing: itel-cabinet run JOB [options], with JOB one of {', '.join(Job)}")
        job, *options = with_template(arguments)
        settings, beam_options = parse_arguments(job, options)
        if on_flink(beam_options):
            tune(beam_options, settings.job)
            check_job_server(beam_options)
        check(settings)
        if settings.metrics_port and not on_flink(beam_options):
            _check_port(settings.metrics_port)
        logging.getLogger().setLevel(logging.INFO)
        prepare(dataclasses.replace(Parts(settings).worker, metrics_port=0))
        counters = launch(settings, beam_options)
    except RefusedError as error:
        print(f"itel-cabinet: {error}", file=sys.stderr)
        return error.exit_status
    for name, count in sorted(counters.items()):
        _LOGGER.info("%s: %d", name, count)
    return 0
