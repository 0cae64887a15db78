"""The whole job on one page.

Everything after the read is one fused stage: no shuffle stands between a record and its sinks, so a bundle's offsets
are committed only once its rows, submissions, results and dead letters are durable. That one rule is what the delivery
contract in docs/reliability.md rests on.

    Kafka ──> parse ──> look up in ClaimX ─┬─> tracking rows ───> Delta
                │               │          ├─> form rows ───────> Delta
                │               │          ├─> photo files ─> attachment rows ─> Delta
                │               │          └─> not yet settled ─> payloads ─> iTel ─> results, dead letters ─> ledger
                └── failures ───┴─> dead letters
"""

from __future__ import annotations

import time
from functools import partial

import apache_beam as beam
import pyarrow as pa

from itel_cabinet.io.batches import Batch, Passing
from itel_cabinet.io.delta import WriteToDelta
from itel_cabinet.io.kafka import ReadFromKafka
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.pipeline.steps import (
    Step,
    and_pass,
    count_form,
    count_lookups,
    count_photos,
    count_submissions,
    look_ahead,
    passed,
    take_outcomes,
)
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from itel_cabinet.pipeline.wiring import Wiring
from itel_cabinet.transforms.enrichment import enrich, look_up_missing_tasks
from itel_cabinet.transforms.events import parse_claimx_events, parse_task_events, skip_other_statuses
from itel_cabinet.transforms.ledger import leave_settled_out
from itel_cabinet.transforms.lookups import look_up_exports
from itel_cabinet.transforms.photos import fetch_photos
from itel_cabinet.transforms.rows import make_attachment_rows, make_form_rows, make_tracking_rows
from itel_cabinet.transforms.submission_keys import name_key
from itel_cabinet.transforms.submissions import build_submissions
from itel_cabinet.transforms.submitting import submit
from itel_cabinet.transforms.suppression import leave_out_erased
from itel_cabinet.transforms.triggers import apply_rules

__all__ = ["build"]


def build(pipeline: beam.Pipeline, settings: Settings) -> None:
    """Add the job that ``settings`` names to a pipeline."""
    wiring = Wiring(settings)
    read = partial(ReadFromKafka, wiring.source, wiring.prepare_worker)
    if settings.job is Job.TRIGGER:
        _trigger(pipeline | "Read" >> read(), wiring)
        return

    parse = partial(
        leave_out_erased,
        parse=partial(parse_task_events, group=settings.source.group, task_ids=wiring.task_ids, clock=time.time),
        erased=wiring.get_erased,
    )
    look_up = partial(
        enrich,
        lookup=wiring.get_claimx,
        pool=wiring.get_claimx_pool,
        form_wait=wiring.wait_for_form,
        read_form=wiring.contract.read_form,
        clock=time.time,
        count=count_form,
    )
    if settings.job is Job.API:
        events = pipeline | "Read" >> read() | "Parse" >> Step("parse", parse)
        submitted = events.results | "To submit" >> Step(
            "select", partial(skip_other_statuses, statuses=settings.submitted_statuses)
        )
        # Before it costs a lookup, and after the batch before, which may have settled it.
        tasks = _leave_settled_out(submitted.results, wiring) | "Look up" >> Step("enrich", look_up)
    else:
        # The next batch is looked up while this one is written and sent.
        batches = pipeline | "Read" >> read(partial(look_ahead, parse=parse, look_up=look_up))
        events = batches | "Parse" >> Step("parse", list)
        tasks = events.results | "Look up" >> Step("enrich", take_outcomes)
    events.failures | "Unreadable" >> wiring.dead_letter_sink()
    tasks.failures | "Not found" >> wiring.dead_letter_sink()

    if settings.job.writes_tables:
        _track(tasks.results, wiring)
    if settings.job is Job.CABINET:
        _submit(_leave_settled_out(tasks.results, wiring), wiring)
    elif settings.job is Job.API:
        _submit(tasks.results, wiring)


def _track(tasks: beam.PCollection, wiring: Wiring) -> None:
    """The Delta branch: the event's row, the newest form, its photos, whose files are waited for within a limit."""
    rows = tasks | "Event rows" >> beam.Map(partial(make_tracking_rows, clock=time.time)).with_output_types(Batch)
    written = rows | "Track" >> WriteToDelta(wiring.tables[TRACKING], whole_batches=True)
    forms = tasks | "Form rows" >> beam.Map(partial(make_form_rows, clock=time.time)).with_output_types(Batch)
    forms | "Keep forms" >> WriteToDelta(wiring.tables[FORMS], whole_batches=True)
    if wiring.settings.fetches_media:
        tasks = tasks | "Fetch photos" >> beam.Map(
            partial(
                fetch_photos,
                library=wiring.get_photos,
                pool=wiring.get_media_pool,
                deadline_seconds=wiring.settings.media.deadline_seconds,
                clock=time.monotonic,
                count=count_photos,
            )
        ).with_output_types(Batch)
    photos = tasks | "Photo rows" >> beam.Map(partial(make_attachment_rows, clock=time.time)).with_output_types(Batch)
    photos | "Keep photos" >> WriteToDelta(wiring.tables[ATTACHMENTS], whole_batches=True)
    if wiring.settings.outputs.tracking_success_topic:
        unreported = written | "Tell of events" >> wiring.tracking_success_sink()
        unreported | "Unreported events" >> wiring.dead_letter_sink()


def _leave_settled_out(tasks: beam.PCollection, wiring: Wiring) -> beam.PCollection:
    """What iTel does not have yet, as far as there is a ledger to say so."""
    if not wiring.settings.keeps_ledger:
        return tasks
    leave_out = partial(
        leave_settled_out,
        ledger=wiring.get_settled,
        statuses=wiring.settings.submitted_statuses,
        resubmission=wiring.resubmission,
    )
    return (tasks | "Leave out what is settled" >> Step("select", leave_out)).results


def _submit(tasks: beam.PCollection, wiring: Wiring) -> None:
    """The iTel branch: every completed task ends in the success or the error topic, unless iTel has it; and, once that
    is durable, in the ledger. What has ended early travels on beside the rest, so that all ends are one commit."""
    settings = wiring.settings
    if wiring.contract.needs_exports:
        tasks = (
            tasks
            | "Look up for iTel"
            >> Step(
                "enrich",
                partial(
                    look_up_exports,
                    contract=wiring.contract,
                    statuses=settings.submitted_statuses,
                    exports=wiring.get_exports,
                    pool=wiring.get_claimx_pool,
                    clock=time.time,
                    count=count_lookups,
                ),
                carries=True,
            )
        ).results
    submissions = tasks | "Payloads" >> Step(
        "payload",
        partial(
            build_submissions,
            contract=wiring.contract,
            statuses=settings.submitted_statuses,
            shadow=settings.shadow_contract,
            clock=time.time,
        ),
        carries=True,
    )
    ends = submissions.results | "Submit" >> Step(
        "submit",
        partial(
            submit,
            client=wiring.get_itel,
            newest=wiring.get_newest_contents,
            pool=wiring.get_itel_pool,
            clock=time.time,
            count=count_submissions,
            shadow=wiring.get_shadow,
            key=name_key,
            resubmission=wiring.resubmission,
        ),
        carries=True,
    )
    reported = (
        ends.results | "Tell of submissions" >> wiring.itel_success_sink() | "Refused" >> wiring.itel_error_sink()
    )
    # One sink behind the other: what the ledger holds is not sent again, so by then its result and body must be out.
    if settings.keeps_bodies:
        bodies = reported | "Body rows" >> beam.FlatMap(and_pass, wiring.make_body_rows).with_output_types(Passing)
        reported = (
            bodies
            | "Keep bodies" >> WriteToDelta(wiring.tables[BODIES])
            | "Kept" >> beam.FlatMap(passed).with_output_types(Batch)
        )
    if settings.keeps_ledger:
        rows = reported | "Ledger rows" >> beam.Map(wiring.make_ledger_rows).with_output_types(pa.Table)
        rows | "Keep the ledger" >> WriteToDelta(wiring.tables[LEDGER])


def _trigger(records: beam.PCollection, wiring: Wiring) -> None:
    """ClaimX events that a rule matches become messages on the rule's topic; a batch's, with its dead letters and its
    offsets, are one transaction, which the source begins and the sinks join."""
    settings = wiring.settings
    parse = partial(parse_claimx_events, group=settings.source.group, clock=time.time)
    events = records | "Parse" >> Step("parse", partial(leave_out_erased, parse=parse, erased=wiring.get_erased))
    events.failures | "Unreadable" >> wiring.dead_letter_sink()
    known = events.results | "Look up" >> Step(
        "enrich",
        partial(
            look_up_missing_tasks,
            lookup=wiring.get_claimx,
            pool=wiring.get_claimx_pool,
            form_wait=wiring.wait_for_form,
            clock=time.time,
        ),
    )
    known.failures | "Not found" >> wiring.dead_letter_sink()
    matched = known.results | "Match" >> Step(
        "publish",
        partial(apply_rules, rules=wiring.trigger_rules, topic=settings.outputs.output_topic, clock=time.time),
    )
    matched.results | "Publish" >> wiring.publication_sink() | "Unpublished" >> wiring.dead_letter_sink()
