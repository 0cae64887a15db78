"""What graph.py puts together: each part of a job made from the settings, in one place."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path

from itel_cabinet.io.claimx import ClaimXSettings
from itel_cabinet.io.delta import TableSpec
from itel_cabinet.io.itel import OUTCOMES, Itel, ItelSettings, folder_of, get_itel
from itel_cabinet.io.kafka import KafkaSinkSettings, KafkaSource, client_config
from itel_cabinet.io.photos import get_photos
from itel_cabinet.io.task_lookup import get_task_lookup
from itel_cabinet.io.worker import ExpectedLabels, WorkerSettings, get_pool, prepare
from itel_cabinet.pipeline.options import Job, Settings
from itel_cabinet.pipeline.outputs import PublishMessages, SendResults, SendTracked, WriteDeadLetters
from itel_cabinet.pipeline.tables import table_specs
from itel_cabinet.transforms.enrichment import TaskLookup
from itel_cabinet.transforms.photos import PhotoLibrary
from itel_cabinet.transforms.triggers import Rules, load_default_rules, load_rules

__all__ = ["Parts"]


class Parts:
    """The parts of one job. Nothing is opened here: clients and pools are callables that workers call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        client = client_config(settings.bootstrap_servers, settings.kafka_config)
        self.kafka = KafkaSinkSettings(client, settings.outage_patience_seconds)
        self.source = KafkaSource(
            client=client,
            topic=settings.input_topic,
            group=settings.consumer_group,
            start_offset=settings.start_offset,
            shards=settings.shards,
            max_batch_records=settings.max_batch_records,
            max_batch_seconds=settings.max_batch_seconds,
            until_caught_up=settings.until_caught_up,
            outage_seconds=settings.outage_patience_seconds,
            topic_epoch=settings.topic_epoch,
        )
        self.clock: Callable[[], float] = time.time
        self.stopwatch: Callable[[], float] = time.monotonic
        self.form_wait: Callable[[float], None] = functools.partial(_wait_after, settings.form_wait_seconds)
        self.claimx: Callable[[], TaskLookup] = functools.partial(
            get_task_lookup,
            ClaimXSettings(settings.claimx_connection(), settings.claimx_task_path, settings.claimx_cache_seconds),
            on_outage=settings.claimx_on_outage,
            outage_seconds=settings.outage_patience_seconds,
        )
        self.claimx_pool: Callable[[], Executor] = functools.partial(get_pool, "claimx", settings.http_concurrency)
        self.media_pool: Callable[[], Executor] = functools.partial(get_pool, "media", settings.media_concurrency)
        self.itel_pool: Callable[[], Executor] = functools.partial(get_pool, "itel", settings.http_concurrency)

    @property
    def worker(self) -> WorkerSettings:
        settings = self.settings
        return WorkerSettings(
            job=settings.job.value,
            group=settings.consumer_group,
            topic=settings.input_topic,
            version=version("itel-cabinet"),
            log_format=settings.log_format,
            metrics_port=settings.metrics_port,
            stuck_after_seconds=settings.stuck_after_seconds,
            expected=self._expected,
        )

    @property
    def on_worker(self) -> Callable[[], object]:
        """What each process of the job begins with."""
        return functools.partial(prepare, self.worker)

    @property
    def _expected(self) -> ExpectedLabels:
        """The metrics that this job can count."""
        settings = self.settings
        calls_itel = settings.job.calls_itel
        is_trigger = settings.job is Job.TRIGGER
        submits = calls_itel and isinstance(self.itel_settings, ItelSettings)
        topics = {
            settings.dead_letter_topic,
            *([settings.itel_errors_topic, settings.itel_success_topic] if calls_itel else ()),
            *(((settings.output_topic,) if settings.output_topic else self.rules.topics) if is_trigger else ()),
            *([settings.tracking_success_topic] if settings.job.writes_tables else ()),
        }
        return ExpectedLabels(
            consumed=(settings.input_topic,),
            published=tuple(sorted(filter(None, topics))),
            apis=("claimx", *(["itel"] if submits else ())),
            outcomes=OUTCOMES if calls_itel else (),
            tables=tuple(spec.name for spec in self.tables.values()) if settings.job.writes_tables else (),
        )

    @functools.cached_property
    def itel(self) -> Callable[[], Itel]:
        return functools.partial(
            get_itel,
            self.itel_settings,
            on_outage=self.settings.itel_on_outage,
            outage_seconds=self.settings.outage_patience_seconds,
        )

    @functools.cached_property
    def itel_settings(self) -> ItelSettings | Path:
        return folder_of(self.settings.itel_url or "") or self.settings.itel_settings()

    @functools.cached_property
    def photos(self) -> Callable[[], PhotoLibrary]:
        return functools.partial(get_photos, self.settings.media_settings())

    @functools.cached_property
    def rules(self) -> Rules:
        """Raises RulesError, or OSError for a file that cannot be read."""
        path = self.settings.triggers
        return load_rules(Path(path).read_text(encoding="utf-8"), path) if path else load_default_rules()

    @functools.cached_property
    def tables(self) -> dict[str, TableSpec]:
        return table_specs(self.settings)

    def dead_letters(self) -> WriteDeadLetters:
        return self._failures_to(self.settings.dead_letter_topic)

    def itel_errors(self) -> WriteDeadLetters:
        return self._failures_to(self.settings.itel_errors_topic)

    def _failures_to(self, topic: str) -> WriteDeadLetters:
        settings = self.settings
        return WriteDeadLetters(
            self.kafka, topic, settings.job.value, settings.consumer_group, settings.dead_letter_max_bytes
        )

    def results(self) -> SendResults:
        return SendResults(self.kafka, self.settings.itel_success_topic, self.clock)

    def tracked(self) -> SendTracked:
        return SendTracked(self.kafka, self.settings.tracking_success_topic)

    def publish(self) -> PublishMessages:
        return PublishMessages(self.kafka, self.clock)


def _wait_after(seconds: float, announced_at: float) -> None:
    """Return ``seconds`` after ``announced_at`` (epoch seconds), and within ``seconds`` whatever the clocks say."""
    time.sleep(min(seconds, max(0.0, announced_at + seconds - time.time())))
