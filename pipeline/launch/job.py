"""Check what is known to go wrong, then run a job: ``python -m itel_cabinet.pipeline.launch JOB [options]``."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TypeOptions
from apache_beam.runners.runner import PipelineResult
from confluent_kafka import KafkaException

from itel_cabinet.io.delta import FencedTable, TableError, create_table, differing_properties
from itel_cabinet.io.http import ConnectionSettings
from itel_cabinet.io.kafka import Cluster, check_group, check_transactions, leave_group, resolve_config
from itel_cabinet.io.objects import ObjectStoreError, ObjectStoreSettings, get_objects
from itel_cabinet.io.secrets import UnresolvedSecretError
from itel_cabinet.io.worker import STOP, OutageError, RefusedError, check_port, describe_error, prepare
from itel_cabinet.pipeline.graph import build
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.launch.arguments import find_old_names, parse_arguments
from itel_cabinet.pipeline.launch.direct_runner import get_direct_runner
from itel_cabinet.pipeline.launch.flink import (
    NotRunningError,
    check_job_server,
    describe_submission_error,
    is_on_flink,
    is_waited_for,
    set_flink_options,
    wait_until_running,
)
from itel_cabinet.pipeline.launch.templates import with_template
from itel_cabinet.pipeline.options import OptionError, Settings, name_option
from itel_cabinet.pipeline.refusals import describe_kafka_error, describe_table_error
from itel_cabinet.pipeline.steps import NAMESPACE
from itel_cabinet.pipeline.wiring import Wiring
from itel_cabinet.transforms.triggers import RulesError

__all__ = ["JobFailedError", "LaunchError", "check", "launch", "main"]

_LOGGER = logging.getLogger(__name__)

_CHECK_SECONDS = 10.0
# Counters of Beam itself, which Prism returns beside the others.
_BEAMS_OWN = "beam"


class LaunchError(RefusedError):
    """Something the job needs is not there; the message is one line that names the option and says what to do."""


class JobFailedError(RefusedError):
    """The job ended early; the message is one line. A restart goes on from the group's offsets."""


def _warn(settings: Settings) -> None:
    """Say what a job that will run does not do."""
    if settings.job.calls_itel and not settings.keeps_ledger:
        _print(
            "warning: no ledger is kept, so what iTel has is sent again when it is read again, under the same key: "
            "give --tables_root" + (" and leave --ledger=off out" if settings.tables.root else "")
        )


def check(settings: Settings) -> None:
    """Refuse what is known to go wrong, within 30 seconds. Creates missing tables and columns. Raises LaunchError."""
    wiring = Wiring(settings)
    with _naming("triggers", RulesError):
        _ = wiring.trigger_rules
    with _naming("resubmit", ValueError):
        _ = wiring.resubmission
    _check_connection("claimx", settings.claimx_connection())
    if settings.job.calls_itel and settings.itel.folder is None:
        _check_connection("itel", settings.itel_connection())
        if settings.itel.shadow_url:
            _check_connection("itel", settings.shadow_settings().connection)
    elif settings.job.calls_itel:
        with _naming("itel_url", ObjectStoreError, hint="give another folder"):
            get_objects(ObjectStoreSettings(str(settings.itel.folder))).check()
    if settings.fetches_media:
        with _naming("media_root", ObjectStoreError, hint="give a folder or object-store URI that can be written"):
            get_objects(settings.media_settings().store).check()
    try:
        _check_kafka(wiring)
        with _naming("partition_by", ValueError):
            specs = wiring.tables.values()
        for spec in specs:
            state = create_table(spec)
            for name, value in differing_properties(spec, state).items():
                _print(f"warning: --table_properties: {spec} has {name} = {value} already, which is left as it is")
            if {*spec.schema.names} - {*state.schema.names}:
                FencedTable(spec).add_columns()
    except KafkaException as error:
        raise LaunchError(describe_kafka_error(error, settings.source.bootstrap_servers)) from None
    except (TableError, OutageError) as error:
        raise LaunchError(describe_table_error(error)) from None


@contextmanager
def _naming(option: str, *errors: type[Exception], hint: str = "") -> Iterator[None]:
    """In it, these errors become a LaunchError that names the option."""
    try:
        yield
    except errors as error:
        raise LaunchError(f"--{option}: {error}{f': {hint}' if hint else ''}") from None


def _check_connection(group: str, connection: ConnectionSettings) -> None:
    try:
        connection.check()
    except UnresolvedSecretError as error:
        raise LaunchError(str(name_option(group, error))) from None


def _check_kafka(wiring: Wiring) -> None:
    settings, outputs = wiring.settings, wiring.settings.outputs
    needed = {"input_topic": {settings.source.topic}, "dead_letter_topic": {outputs.dead_letter_topic}}
    if settings.job.calls_itel:
        needed["itel_errors_topic"] = {outputs.itel_errors_topic}
        needed["itel_success_topic"] = {outputs.itel_success_topic}
    if settings.job.writes_tables and outputs.tracking_success_topic:
        needed["tracking_success_topic"] = {outputs.tracking_success_topic}
    if settings.job is Job.TRIGGER:
        needed["output_topic"] = {*wiring.trigger_topics}
    with _naming("kafka_config", UnresolvedSecretError):
        client = resolve_config(wiring.source.client)
    known = Cluster(client, timeout=_CHECK_SECONDS).names()
    for option, topics in needed.items():
        for topic in sorted(topics - known):
            raise LaunchError(
                f"--{option}: topic {topic} does not exist at {settings.source.bootstrap_servers}: "
                "create it with `itel-cabinet topics create`"
            )
    with _naming("consumer_group", RefusedError):
        offsets, foreign = check_group(wiring.source)
    if settings.uses_transactions:
        with _naming("transactions", RefusedError, hint="off does without, at least once then"):
            check_transactions(wiring.source)
    if foreign:
        offsets_text = ",".join(f"{partition}={offset}" for partition, offset in foreign.offsets.items())
        _print(
            f"warning: {foreign}: itel-cabinet offsets reset --group={settings.source.group} "
            f"--topic={settings.source.topic} --to_offset={offsets_text}"
        )
    if settings.source.start_offset == "latest" and not offsets:
        raise LaunchError(
            f"--start_offset=latest: the group {settings.source.group} has no offsets yet, so what arrives before "
            "the first commit would be lost by a restart: start with earliest, or set the group's offsets first"
        )


def launch(settings: Settings, beam_options: PipelineOptions) -> dict[str, int]:
    """Run a job until it ends: caught up, stopped by SIGTERM or SIGINT, or failed.

    ``DirectRunner`` runs it in this process, and always is Beam's FnApiRunner here: nothing is fetched.

    Returns:
        The job's counters: ``skipped:REASON``, ``failed:STAGE:CLASS``, ``STEP: NAME``.

    Raises:
        JobFailedError, NotRunningError: the job failed, or did not start on the cluster.
        LaunchError: the runner is unknown.
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
    if is_on_flink(beam_options):
        return _submit(pipeline, beam_options, _describe(settings))
    _LOGGER.info("%s", _describe(settings))
    with _stop_on_signals():
        try:
            result = pipeline.run()
            result.wait_until_finish()
        except Exception as error:
            if (refusal := find_refusal(error)) is not None:
                raise JobFailedError(str(refusal)) from error
            _LOGGER.error("an error of the program", exc_info=error)
            raise JobFailedError(_last_line(error)) from error
        finally:
            leave_group(Wiring(settings).source)
    _LOGGER.info("%s has stopped; it goes on from the offsets of group %s", settings.job, settings.source.group)
    return _read_counters(result)


def _describe(settings: Settings) -> str:
    """What a job reads, from where, and what it writes, in one line."""
    wiring, source, outputs = Wiring(settings), settings.source, settings.outputs
    goals = [f"topic {name}" for name in sorted(wiring.trigger_topics)] if settings.job is Job.TRIGGER else []
    goals += [spec.uri for spec in wiring.tables.values()]
    if settings.job.calls_itel:
        goals.append(f"iTel at {settings.itel.folder or settings.itel.base_url}")
    templates = ", ".join(map(str, sorted(wiring.task_ids)))
    return (
        f"{settings.job} starts: reads {source.topic} at {source.bootstrap_servers} as group {source.group}, "
        f"task templates {templates}; writes {', '.join(goals)}; dead letters to {outputs.dead_letter_topic}"
    )


def _submit(pipeline: beam.Pipeline, options: PipelineOptions, description: str) -> dict[str, int]:
    """Hand a job to the cluster, where it goes on without this process; its counters if it was waited for."""
    try:
        result = pipeline.run()
        wait_until_running(result, options)
        _LOGGER.info("%s", description)
        if not is_waited_for(options):
            return {}
        result.wait_until_finish()
    except NotRunningError:
        raise
    except grpc.RpcError as error:
        raise JobFailedError(describe_submission_error(error, options)) from None
    except Exception as error:
        raise JobFailedError(_last_line(error)) from error
    return _read_counters(result)


def _read_counters(result: PipelineResult) -> dict[str, int]:
    """The job's counters: skips and failures by reason, what a source or sink counts by its step."""
    counts: Counter[str] = Counter()
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        if counter.key.metric.namespace == _BEAMS_OWN:
            continue
        if counter.key.metric.namespace != NAMESPACE:
            # Prism leaves out the step of most.
            step = (counter.key.step or "").partition("/")[0]
            name = f"{step}: {name}" if step else name
        counts[name] += counter.attempted if counter.committed is None else counter.committed
    return dict(counts)


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT ask the readers to stop; the bundle under way is finished and its offsets committed."""

    def stop(number: int, _frame: FrameType | None) -> None:
        _LOGGER.info("%s: finishing what is under way", signal.Signals(number).name)
        STOP.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """The command: 0 done, 1 failed, 2 wrong use; each error is a line on stderr."""
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
        for old, new in find_old_names(options).items():
            _print(f"--{old} is the old name of --{new}: use that")
        if is_on_flink(beam_options):
            set_flink_options(beam_options, settings.job)
            check_job_server(beam_options)
        check(settings)
        _warn(settings)
        if settings.monitoring.metrics_port and not is_on_flink(beam_options):
            with _naming("metrics_port", RefusedError):
                check_port(settings.monitoring.metrics_port)
        logging.getLogger().setLevel(logging.INFO)
        prepare(dataclasses.replace(Wiring(settings).worker, metrics_port=0))
        counters = launch(settings, beam_options)
    except RefusedError as error:
        for line in str(error).splitlines():
            _print(line)
        return error.exit_status
    for name, count in sorted(counters.items()):
        _LOGGER.info("%s: %d", name, count)
    return 0


def _print(line: str) -> None:
    print(f"itel-cabinet: {line}", file=sys.stderr)
