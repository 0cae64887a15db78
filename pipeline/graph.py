"""The whole job on one page.

Everything after the read is one fused stage: no shuffle stands between a record and its sinks, so a bundle's offsets
are committed only once its rows, submissions, results and dead letters are durable. That one rule is what the delivery
contract in docs/reliability.md rests on.

    Kafka ──> parse ──> look up in ClaimX ─┬─> tracking rows ───> Delta
                │               │          ├─> form rows ───────> Delta
                │               │          ├─> photo files ─> attachment rows ─> Delta
                │               │          └─> payloads ─> iTel ─> results
                └───────────────┴── failures ─> dead letters ┘
"""

from __future__ import annotations

from functools import partial

import apache_beam as beam

from itel_cabinet.io.batches import Batch
from itel_cabinet.io.delta import WriteToDelta
from itel_cabinet.io.itel import submit
from itel_cabinet.io.kafka import ReadFromKafka
from itel_cabinet.pipeline.options import Job, Settings
from itel_cabinet.pipeline.steps import Step
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.pipeline.wiring import Parts
from itel_cabinet.transforms.enrichment import enrich, look_up_missing_tasks
from itel_cabinet.transforms.events import parse_claimx_events, parse_task_events, skip_other_statuses
from itel_cabinet.transforms.fetching import fetch_photos
from itel_cabinet.transforms.rows import make_attachment_rows, make_form_rows, make_tracking_rows
from itel_cabinet.transforms.submissions import build_submissions
from itel_cabinet.transforms.triggers import apply_rules

__all__ = ["build"]


def build(pipeline: beam.Pipeline, settings: Settings) -> None:
    """Add the job that ``settings`` names to a pipeline."""
    parts = Parts(settings)
    records = pipeline | "Read" >> ReadFromKafka(parts.source, parts.on_worker)
    if settings.job is Job.TRIGGER:
        _trigger(records, parts)
        return

    events = records | "Parse" >> Step(partial(parse_task_events, group=settings.consumer_group, clock=parts.clock))
    events.failures | "Unreadable" >> parts.dead_letters()

    wanted = events.results
    if settings.job is Job.API:
        wanted = (
            wanted | "To submit" >> Step(partial(skip_other_statuses, statuses=settings.submitted_statuses))
        ).results

    tasks = wanted | "Look up" >> Step(
        partial(enrich, lookup=parts.claimx, pool=parts.claimx_pool, form_wait=parts.form_wait, clock=parts.clock)
    )
    tasks.failures | "Not found" >> parts.dead_letters()

    if settings.job.writes_tables:
        _track(tasks.results, parts)
    if settings.job.calls_itel:
        _submit(tasks.results, parts)


def _track(tasks: beam.PCollection, parts: Parts) -> None:
    """The Delta branch: the event's row, the newest form, its photos, whose files are waited for only so long."""
    rows = tasks | "Event rows" >> beam.Map(partial(make_tracking_rows, clock=parts.clock)).with_output_types(Batch)
    written = rows | "Track" >> WriteToDelta(parts.tables[TRACKING])
    forms = tasks | "Form rows" >> beam.Map(partial(make_form_rows, clock=parts.clock)).with_output_types(Batch)
    forms | "Keep forms" >> WriteToDelta(parts.tables[FORMS])
    if parts.settings.fetches_media:
        tasks = tasks | "Fetch photos" >> beam.Map(
            partial(
                fetch_photos,
                library=parts.photos,
                pool=parts.media_pool,
                deadline_seconds=parts.settings.media_deadline_seconds,
                clock=parts.stopwatch,
            )
        ).with_output_types(Batch)
    photos = tasks | "Photo rows" >> beam.Map(partial(make_attachment_rows, clock=parts.clock)).with_output_types(Batch)
    photos | "Keep photos" >> WriteToDelta(parts.tables[ATTACHMENTS])
    if parts.settings.tracking_success_topic:
        written | "Tell of events" >> parts.tracked()


def _submit(tasks: beam.PCollection, parts: Parts) -> None:
    """The iTel branch: every completed task ends in the success or the error topic."""
    submissions = tasks | "Payloads" >> Step(
        partial(build_submissions, statuses=parts.settings.submitted_statuses, clock=parts.clock)
    )
    submissions.failures | "Incomplete" >> parts.itel_errors()
    answers = submissions.results | "Submit" >> Step(
        partial(submit, client=parts.itel, pool=parts.itel_pool, clock=parts.clock)
    )
    answers.failures | "Refused" >> parts.itel_errors()
    answers.results | "Tell of submissions" >> parts.results()


def _trigger(records: beam.PCollection, parts: Parts) -> None:
    """ClaimX events that a rule matches become messages on the rule's topic."""
    settings = parts.settings
    events = records | "Parse" >> Step(partial(parse_claimx_events, group=settings.consumer_group, clock=parts.clock))
    events.failures | "Unreadable" >> parts.dead_letters()
    known = events.results | "Look up" >> Step(
        partial(look_up_missing_tasks, lookup=parts.claimx, pool=parts.claimx_pool, clock=parts.clock)
    )
    known.failures | "Not found" >> parts.dead_letters()
    matched = known.results | "Match" >> Step(
        partial(apply_rules, rules=parts.rules, topic=settings.output_topic, clock=parts.clock)
    )
    matched.results | "Publish" >> parts.publish() | "Unpublished" >> parts.dead_letters()
