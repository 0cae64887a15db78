"""What graph.py puts together, made from the settings: values, factories (``get_...``) and sinks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from itel_cabinet.io.claimx import get_task_lookup
from itel_cabinet.io.delta import SuppressionList, TableSpec
from itel_cabinet.io.erased import Erased, get_erased
from itel_cabinet.io.exports import ClaimXExports, get_exports
from itel_cabinet.io.itel import OUTCOMES, ItelSettings, get_itel, get_newest_contents
from itel_cabinet.io.kafka import KafkaSinkSettings, KafkaSource, client_config
from itel_cabinet.io.photos import Photos, get_photos
from itel_cabinet.io.settled import SettledSubmissions, get_settled
from itel_cabinet.io.shadow import get_shadow
from itel_cabinet.io.worker import ExpectedLabels, WorkerSettings, get_pool, metrics, prepare
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.letter_watch import watch_letters
from itel_cabinet.pipeline.options import Settings
from itel_cabinet.pipeline.outputs import (
    PublishMessages,
    SendMessages,
    WriteDeadLetters,
    encode_rows,
    encode_submissions,
)
from itel_cabinet.pipeline.reconciliation_watch import watch_forms
from itel_cabinet.pipeline.tables import LEDGER, suppression_list, table_specs, tables_of_job
from itel_cabinet.transforms.contracts import Contract
from itel_cabinet.transforms.ledger import (
    ContractName,
    Resubmission,
    make_body_rows,
    make_ledger_rows,
    parse_assignments,
)
from itel_cabinet.transforms.submissions import Submission
from itel_cabinet.transforms.submitting import REMEMBERED_SECONDS, Itel, NewestContents
from itel_cabinet.transforms.triggers import Rules, RulesError, load_default_rules, load_rules

__all__ = ["TRANSACTIONS", "Wiring"]

TRANSACTIONS = "itel-cabinet"
"""The trigger job's transactional ids begin so, then with its group: ``itel-cabinet/GROUP/TOPIC ID/PARTITION``."""

_SURELY_OLD_SECONDS = 3_600.0


class Wiring:
    """What one job consists of. Nothing is opened here: workers call the factories, which make one object a process."""

    def __init__(self, settings: Settings) -> None:
        source, seconds = settings.source, settings.outage_patience_seconds
        client = client_config(source.bootstrap_servers, source.kafka_config)
        self.settings = settings
        self.source = KafkaSource(
            client=client,
            job=settings.job.value,
            outage_seconds=seconds,
            transactions=TRANSACTIONS if settings.uses_transactions else "",
            **source.model_dump(exclude={"bootstrap_servers", "kafka_config"}),
        )
        self.sink = KafkaSinkSettings(client, seconds, transactional=settings.uses_transactions)

        self.get_claimx = partial(
            get_task_lookup, settings.claimx_settings(), on_outage=settings.claimx.on_outage, outage_seconds=seconds
        )
        self.get_claimx_pool = partial(get_pool, "claimx", settings.http.concurrency)
        self.get_itel_pool = partial(get_pool, "itel", settings.http.concurrency)
        self.get_media_pool = partial(get_pool, "media", settings.media.concurrency)

        self.wait_for_form = partial(_wait_for_form, settings.claimx.form_wait_seconds)

    @property
    def worker(self) -> WorkerSettings:
        """What each process of the job is prepared with."""
        settings = self.settings
        return WorkerSettings(
            job=settings.job.value,
            group=settings.source.group,
            topic=settings.source.topic,
            version=version("itel-cabinet"),
            expected=self._expected_labels,
            **settings.monitoring.model_dump(),
        )

    @property
    def prepare_worker(self) -> partial[None]:
        """Prepares a process, and has it watch its group's dead letters, and the forms that iTel lacks, if it reports
        anything."""
        letters = partial(
            watch_letters,
            self.sink.client,
            tuple(sorted(self._error_topics)),
            self.settings.source.group,
            self.settings.source.topic_epoch,
        )
        specs = tuple(table_specs(self.settings).items()) if self.settings.keeps_ledger else ()
        forms = partial(watch_forms, specs, self.settings.submitted_statuses)
        watches = (letters, *((forms,) if specs else ())) if self.worker.metrics_port else ()
        contract = self.contract
        info = (contract.file.name, contract.file.version, contract.sha256)
        return partial(_prepare, self.worker, info, watches)

    @property
    def _error_topics(self) -> set[str]:
        outputs = self.settings.outputs
        return {outputs.dead_letter_topic, *((outputs.itel_errors_topic,) if self.settings.job.calls_itel else ())}

    @property
    def _expected_labels(self) -> ExpectedLabels:
        settings, outputs = self.settings, self.settings.outputs
        writes_tables, calls_itel = settings.job.writes_tables, settings.job.calls_itel
        topics = {
            *self._error_topics,
            *((outputs.itel_success_topic,) if calls_itel else ()),
            *((outputs.tracking_success_topic,) if writes_tables else ()),
            *(self.trigger_topics if settings.job is Job.TRIGGER else ()),
        }
        return ExpectedLabels(
            consumed=(settings.source.topic,),
            published=tuple(sorted(filter(None, topics))),
            apis=("claimx", "itel") if calls_itel and settings.itel.folder is None else ("claimx",),
            outcomes=OUTCOMES if calls_itel else (),
            tables=tuple(self.tables),
        )

    @cached_property
    def get_itel(self) -> partial[Itel]:
        settings = self.settings
        return partial(
            get_itel,
            self._itel_target,
            on_outage=settings.itel.on_outage,
            outage_seconds=settings.outage_patience_seconds,
        )

    @cached_property
    def get_settled(self) -> partial[SettledSubmissions]:
        return partial(get_settled, self.tables[LEDGER], compare=self.settings.itel.unchanged == "skip")

    @cached_property
    def get_newest_contents(self) -> Callable[[], NewestContents]:
        if self.settings.keeps_ledger:
            return partial(_newest_of, self.get_settled)
        seconds = REMEMBERED_SECONDS if self.settings.itel.unchanged == "skip" else 0.0
        return partial(get_newest_contents, self._itel_target, seconds)

    @cached_property
    def resubmission(self) -> Resubmission | None:
        """What is sent again. Raises ValueError."""
        given = self.settings.tables
        if not given.resubmit:
            return None
        if given.resubmit == "all":
            return Resubmission(given.resubmission)
        text = given.resubmit
        if not re.fullmatch(r"[\d,\s]+", text):
            try:
                text = Path(given.resubmit).read_text(encoding="utf-8")
            except OSError as error:
                raise ValueError(f"{given.resubmit} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{given.resubmit} is not UTF-8 text") from None
        return Resubmission(given.resubmission, parse_assignments(text))

    @property
    def make_ledger_rows(self) -> partial[pa.Table]:
        first, second = self._contract_names
        return partial(make_ledger_rows, contract=first, shadow=second, resubmission=self.resubmission, clock=time.time)

    @property
    def make_body_rows(self) -> partial[pa.Table]:
        first, second = self._contract_names
        return partial(make_body_rows, contract=first, shadow=second)

    @property
    def _contract_names(self) -> tuple[ContractName, ContractName | None]:
        """Of the contract, and of the second endpoint's."""
        second = self.settings.shadow_contract
        return _name(self.contract), None if second is None else _name(second)

    @cached_property
    def _itel_target(self) -> ItelSettings | Path:
        return self.settings.itel.folder or self.settings.itel_settings()

    @property
    def get_shadow(self) -> Callable[[], Callable[[Submission, str], None]] | None:
        """Gives what sends to the second endpoint; None without one."""
        return partial(_offer_to, self.settings.shadow_settings()) if self.settings.itel.shadow_url else None

    @cached_property
    def get_exports(self) -> partial[ClaimXExports]:
        return partial(get_exports, self.settings.export_settings())

    @cached_property
    def get_photos(self) -> partial[Photos]:
        return partial(get_photos, self.settings.media_settings(), self._suppression_list)

    @cached_property
    def get_erased(self) -> partial[Erased] | None:
        """Gives the list of who was erased; None without tables, beside which it lies."""
        settings, place = self.settings, self._suppression_list
        if place is None:
            return None
        store = settings.media_settings().store if settings.fetches_media else None
        return partial(get_erased, place, settings.outage_patience_seconds, store)

    @cached_property
    def _suppression_list(self) -> SuppressionList | None:
        return suppression_list(self.settings) if self.settings.tables.root else None

    @property
    def contract(self) -> Contract:
        return self.settings.contract.loaded

    @property
    def task_ids(self) -> frozenset[int]:
        """The task templates whose events are read."""
        return self.contract.task_ids | self.trigger_rules.task_ids

    @cached_property
    def trigger_rules(self) -> Rules:
        """Raises RulesError."""
        path = self.settings.outputs.triggers
        if not path:
            return load_default_rules(self.contract.task_ids)
        try:
            return load_rules(Path(path).read_text(encoding="utf-8"), path, self.contract.task_ids)
        except OSError as error:
            raise RulesError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise RulesError(f"{path} is not UTF-8 text") from None

    @property
    def trigger_topics(self) -> frozenset[str]:
        """Where the trigger job publishes."""
        topic, rules = self.settings.outputs.output_topic, self.trigger_rules
        return frozenset({topic} if topic else rules.topics)

    @cached_property
    def tables(self) -> dict[str, TableSpec]:
        """Those that the job writes, by name."""
        specs = table_specs(self.settings)
        kept = tables_of_job(self.settings.job, ledger=self.settings.keeps_ledger, bodies=self.settings.keeps_bodies)
        return {name: specs[name] for name in kept}

    def dead_letter_sink(self) -> WriteDeadLetters:
        return self._make_sink_for_failures(self.settings.outputs.dead_letter_topic)

    def itel_error_sink(self) -> WriteDeadLetters:
        return self._make_sink_for_failures(self.settings.outputs.itel_errors_topic)

    def _make_sink_for_failures(self, topic: str) -> WriteDeadLetters:
        settings = self.settings
        return WriteDeadLetters(
            self.sink,
            topic,
            settings.job.value,
            settings.source.group,
            settings.outputs.dead_letter_max_bytes,
            self.contract.stamp,
        )

    def itel_success_sink(self) -> SendMessages:
        topic = self.settings.outputs.itel_success_topic
        encode = partial(encode_submissions, topic=topic, contract=self.contract.stamp, clock=time.time)
        return SendMessages(self.sink, encode, time.time, passes=True)

    def tracking_success_sink(self) -> SendMessages:
        topic = self.settings.outputs.tracking_success_topic
        return SendMessages(self.sink, partial(encode_rows, topic=topic), time.time)

    def publication_sink(self) -> PublishMessages:
        return PublishMessages(self.sink, time.time)


def _prepare(worker: WorkerSettings, contract: tuple[str, str, str], watches: Sequence[Callable[[], object]]) -> None:
    prepare(worker)
    metrics.CONTRACT_INFO.labels(*contract).set(1)
    for watch in watches:
        watch()


def _newest_of(get_settled: Callable[[], SettledSubmissions]) -> NewestContents:
    return get_settled().newest


def _name(contract: Contract) -> ContractName:
    return ContractName(contract.file.name, str(contract.file.version), contract.sha256)


def _offer_to(settings: ItelSettings) -> Callable[[Submission, str], None]:
    return get_shadow(settings).offer


def _wait_for_form(seconds: float, announced_at: float, here: float) -> None:
    """Return ``seconds`` after an event arrived, ``here`` seconds ago; at once if it was announced (epoch seconds) so
    long ago that no clock is so wrong."""
    if not 0 < announced_at < time.time() - _SURELY_OLD_SECONDS:
        time.sleep(max(0.0, seconds - here))
