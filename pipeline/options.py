"""Every parameter once: name, type, default, meaning; read once into a :class:`Settings` that all else takes.

Options are flat on the command line (``--claimx_deadline_seconds``) and stand in groups in the code
(``settings.claimx.deadline_seconds``). An option's name is the alias of its field.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from itel_cabinet.io.claimx import ClaimXSettings
from itel_cabinet.io.exports import ExportSettings, LinkSettings
from itel_cabinet.io.http import (
    AllowedHosts,
    Auth,
    BreakerSettings,
    ConnectionSettings,
    DownloadSettings,
    TlsFiles,
    check_url,
)
from itel_cabinet.io.itel import AnswerRule, ItelSettings, folder_of
from itel_cabinet.io.objects import ObjectStoreSettings
from itel_cabinet.io.photos import MediaSettings
from itel_cabinet.io.worker import LogFormat, RefusedError
from itel_cabinet.pipeline import topics
from itel_cabinet.pipeline.contracts import load_contract
from itel_cabinet.pipeline.jobs import JOB_DEFAULTS, Job
from itel_cabinet.pipeline.json_options import JsonObject
from itel_cabinet.pipeline.kafka_config import LibrdkafkaConfig
from itel_cabinet.transforms.contracts import OWN_HEADERS, SHIPPED, Contract, ContractError, FromVar, Secret

__all__ = [
    "ENVIRONMENT",
    "OLD_NAMES",
    "OptionError",
    "Settings",
    "find_nearest",
    "name_option",
    "option_fields",
    "required_options",
]


class OptionError(RefusedError, ValueError):
    """Wrong use of options. The message has a line for each problem, which names the option and says what to do.

    Attributes:
        field: the option at fault; None if there are several, or if it is something else.
        problems: an error for each of them, itself if there is one.
    """

    exit_status = 2

    def __init__(self, message: str, *, field: str | None = None, problems: Iterable[OptionError] = ()) -> None:
        super().__init__(message, field=field)
        self.problems = tuple(problems) or (self,)

    @classmethod
    def about(cls, option: str, text: str) -> OptionError:
        """``--option: text``"""
        return cls(f"--{option}: {text}", field=option)

    @classmethod
    def missing(cls, option: str, hint: str) -> OptionError:
        """``--option is missing: hint``"""
        return cls(f"--{option} is missing: {hint}", field=option)

    @classmethod
    def join(cls, problems: list[OptionError]) -> OptionError:
        """One error for all of them."""
        return problems[0] if len(problems) == 1 else cls("\n".join(map(str, problems)), problems=problems)


ENVIRONMENT = {
    "bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS",
    "claimx_url": "CLAIMX_API_BASE_URL",
    "itel_url": "ITEL_CABINET_API_BASE_URL",
}
"""Options that fall back to an environment variable."""

OLD_NAMES = {"world_retry_seconds": "outage_patience_seconds"}
"""Former names of options, which still work."""


# --------------------------------------------------------------------------------------------------------------- types


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _refuse_secrets(options: dict[str, str]) -> dict[str, str]:
    for name in options:
        if _STORE_SECRET.search(name):
            raise ValueError(f"{name} is a secret: set it in the environment of the job's workers instead")
    return options


def _check_auth(auth: str) -> str:
    Auth.parse(auth)
    return auth


def _check_key_header(name: str) -> str:
    if name.lower() in OWN_HEADERS:
        raise ValueError(f"{name} is a header that the program sets to something else")
    return name


def _check_table_properties(properties: dict[str, str]) -> dict[str, str]:
    if properties:  # else nobody waits for delta-rs, which takes a while to import
        from itel_cabinet.io.delta import check_properties

        check_properties(properties)
    return properties


def _check_shadow_url(url: str) -> str:
    return url and check_url(url)


def _check_itel_url(url: str) -> str:
    return url if folder_of(url) else check_url(url)


# What object stores call their secrets; the names of files and ids that lead to one are harmless.
_STORE_SECRET = re.compile(
    r"(secret|token|password|sas_|(account|access|master|customer|sas)_key)(?!.*_(file|id)$)", re.IGNORECASE
)

TableProperties = Annotated[JsonObject, AfterValidator(_check_table_properties)]
StoreOptions = Annotated[JsonObject, AfterValidator(_refuse_secrets)]
Reference = Annotated[str, AfterValidator(_check_auth)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
CallsPerSecond = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]
Concurrency = Annotated[int, Field(ge=1, le=256)]
UrlPath = Annotated[str, Field(pattern="^/")]
Topic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
OptionalTopic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,249}$")]


# -------------------------------------------------------------------------------------------------------------- groups


class _Group(BaseModel):
    """The text under a field is the description of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class SourceOptions(_Group):
    """Where records come from."""

    bootstrap_servers: str = Field(min_length=1)
    """Kafka brokers, HOST:PORT[,HOST:PORT]; else KAFKA_BOOTSTRAP_SERVERS."""
    kafka_config: LibrdkafkaConfig = {}
    """More librdkafka settings as a JSON object; passwords as env:NAME or file:PATH."""
    topic: Topic = Field(alias="input_topic")
    """The topic to read."""
    group: str = Field(alias="consumer_group", min_length=1, max_length=249)
    """The group whose offsets say what is done."""
    start_offset: Literal["earliest", "latest"] = "earliest"
    """Where a partition starts that the group has no offset of."""
    shards: int = Field(default=1, ge=1, le=1024)
    """Shards that read side by side; partitions are dealt out."""
    until_caught_up: bool = False
    """Finish once the topic's present end is reached."""
    topic_epoch: int = Field(default=0, ge=0)
    """For brokers without topic ids: raise it after recreating the input topic."""
    max_batch_records: int = Field(ge=1, le=1_000_000)
    """A batch ends at this many records ..."""
    max_batch_seconds: Seconds
    """... or this long after its first record (after the batch before was full, if it waited for that one) ..."""
    max_batch_bytes: int = Field(default=8 * 1024 * 1024, ge=1_000)
    """... or at about this many bytes of records and of ClaimX's answers, judged by the batch before ..."""
    max_bundle_seconds: PositiveSeconds = 10.0
    """... or at as many records as were worked on in so long, judged by the batch before: a crash repeats no more."""


class ApiOptions(_Group):
    """One HTTP API, as its connection needs it."""

    base_url: str | None
    auth: Reference
    ca: str = ""
    """PEM file of certificates to trust beside the usual authorities."""
    client_cert: str = ""
    """PEM file of the certificate to show the server (mTLS), with its chain."""
    client_key: str = ""
    """PEM file of that certificate's key, if it is not in the same file."""
    deadline_seconds: PositiveSeconds = 30.0
    connect_timeout_seconds: PositiveSeconds = 5.0
    """Bounds finding the host and connecting, at each try."""
    read_timeout_seconds: PositiveSeconds = 10.0
    """Bounds the answer of each try."""
    calls_per_second: CallsPerSecond = 0.0
    """How often each worker process may call, tries after the first included; 0: no limit."""


class ClaimXOptions(ApiOptions):
    """The API that tasks and links to photos come from."""

    model_config = ConfigDict(alias_generator=lambda field: f"claimx_{field.removeprefix('base_')}")

    base_url: Annotated[str, AfterValidator(check_url)]
    """ClaimX's base URL; else CLAIMX_API_BASE_URL."""
    auth: Reference = Field(
        default="bearer:env:CLAIMX_API_TOKEN",
        description="none, bearer:REF, basic:REF:REF, api_key:HEADER:REF, oauth2:TOKEN_URL:REF:REF[:scope=SCOPE] or "
        "oauth2_post:... (the client's id and secret, in a header or in the form); REF is env:NAME or file:PATH.",
    )
    task_path: str = "/customTasks/assignment/{assignment_id}?full=true"
    """Where a task is looked up."""
    media_path: str = "/export/project/{project_id}/media?mediaIds={media_ids}"
    """Where links to photos are."""
    cache_seconds: Seconds = 60.0
    """How long an answer may be used again; 0 never."""
    on_outage: Literal["wait", "divert"] = "wait"
    """ClaimX is away: wait and then fail, or divert the records to the dead letters."""
    deadline_seconds: PositiveSeconds = 30.0
    """Bounds one lookup with all its tries."""
    form_wait_seconds: Seconds = Field(default=1.0, alias="form_wait_seconds")
    """A completed task without a form is looked up once more, this long after its event."""


class ContractOptions(_Group):
    """What is read of a form, and what is sent of it."""

    name: str = Field(default=SHIPPED[0], alias="contract", min_length=1)
    """The contract: one that is shipped, or a YAML file; `itel-cabinet contract list` lists them."""
    vars: JsonObject = Field(default={}, alias="contract_vars")
    """What the contract leaves to the installation, as a JSON object; secrets as env:NAME or file:PATH."""

    @property
    def loaded(self) -> Contract:
        """The contract itself. Raises ContractError."""
        return load_contract(self.name, self.vars)


class ItelOptions(ApiOptions):
    """The API that completed forms are submitted to. What the contract says is the default."""

    model_config = ConfigDict(alias_generator=lambda field: f"itel_{field.removeprefix('base_')}")

    base_url: Annotated[str, AfterValidator(_check_itel_url)] | None = None
    """iTel's base URL, or file:DIR to write payloads there; else ITEL_CABINET_API_BASE_URL."""
    path: UrlPath = "/api/v1/tasks"
    """Where submissions are sent, in place of the contract's."""
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    """How submissions are sent, in place of the contract's."""
    auth: Reference = "bearer:env:ITEL_CABINET_API_TOKEN"
    """As --claimx_auth, in place of the contract's."""
    idempotency_header: Annotated[str, AfterValidator(_check_key_header)] = Field(
        default="Idempotency-Key", pattern="^[A-Za-z0-9-]*$"
    )
    """The header that carries the event id, in place of the contract's; empty: none."""
    statuses: CommaList = Field(default=("COMPLETED",), min_length=1)
    """Task statuses that are submitted, separated by commas, in place of the contract's."""
    deadline_seconds: PositiveSeconds = 30.0
    """Bounds one submission with all its tries."""
    on_outage: Literal["divert", "wait"]
    """iTel is away: divert submissions to the error topic, so that no table is held up, or wait until it is back."""
    unchanged: Literal["skip", "send"] = "skip"
    """A form that iTel has by another event of the assignment, word for word: leave it out, or send it too."""
    shadow_url: Annotated[str, AfterValidator(_check_shadow_url)] = ""
    """A second endpoint that gets each submission too; only its answers are counted (shadow_submissions)."""
    shadow_contract: str = ""
    """What the second endpoint gets, by this contract; default: the same."""
    shadow_vars: JsonObject = {}
    """What that contract leaves to the installation, as --contract_vars."""
    shadow_auth: str = Field(
        default="", description="As --claimx_auth; default: what that contract says, or --itel_auth."
    )
    batch_size: int = Field(default=1, ge=1, le=1_000)
    """Submissions sent in one call."""
    batch_path: UrlPath = "/api/v1/tasks/batch"
    """Where batches are sent, in place of the contract's."""

    @property
    def folder(self) -> Path | None:
        """The folder that submissions are written to instead."""
        return folder_of(self.base_url or "")


class HttpOptions(_Group):
    """What holds for both APIs."""

    max_retries: int = Field(default=9, ge=0, le=100)
    """Tries after the first, for ClaimX and iTel."""
    concurrency: Concurrency = Field(default=32, alias="http_concurrency")
    """Calls at a time, for each API and process."""
    max_retry_after_seconds: PositiveSeconds = 300.0
    """How long an API that limits its calls (429) is left alone at most before one call looks whether it still does."""
    breaker_failure_share: float = Field(default=0.8, gt=0, le=1)
    """An API is not called for a while when this share of the last tries (20 at least) failed ..."""
    breaker_window_seconds: PositiveSeconds = 20.0
    """... which are those of so many seconds."""
    breaker_open_seconds: Seconds = 15.0
    """How long it is left in peace before one call looks whether it is back; 0: never."""


class TablesOptions(_Group):
    """The Delta tables."""

    root: str = Field(default="", alias="tables_root")
    """Folder or object-store URI that holds the tables."""
    storage_options: StoreOptions = {}
    """Object-store options of delta-rs as a JSON object; secrets belong in the environment."""
    partition_by: CommaList = ("year", "month", "day")
    """Partition columns of the tracking table, when it is created."""
    properties: TableProperties = Field(default={}, alias="table_properties")
    """Delta properties of tables that are created, as a JSON object; those that break fences are refused."""
    ledger: Literal["on", "off"] = "off"
    """Keep a row of each submission's end, and send nothing that it says iTel has; on by itself with --tables_root."""
    submission_bodies: Literal["on", "off"] = "on"
    """With the ledger: keep what was sent, in a table of its own."""
    resubmit: str = ""
    """Send again what the ledger says iTel has: all, or assignments, as ID,ID,... or a file of them."""
    resubmission: str = Field(default="", pattern=r"^[\w .:-]{0,100}$")
    """The name of what --resubmit asks for: what it has settled is not sent again under the same name."""


class MediaOptions(_Group):
    """The files of photos."""

    model_config = ConfigDict(alias_generator=lambda field: f"media_{field}")

    fetch: Literal["on", "off"] = Field(default="off", alias="media")
    """Fetch the files of photos; on by itself where --media_root is given."""
    root: str = ""
    """Folder or object-store URI where photo files go."""
    storage_options: StoreOptions = {}
    """Options of obstore for --media_root as a JSON object; secrets in the environment."""
    allowed_hosts: CommaList = Field(
        default=("*.amazonaws.com",),
        description="Where links to photos and their redirects may lead, beside ClaimX's own host: names, *.domain, "
        "and addresses or networks, without which private ones are refused; separated by commas.",
    )
    deadline_seconds: PositiveSeconds = 10.0
    """A batch waits no longer for its photos; the rest is for `media backfill`."""
    max_bytes: int = Field(default=25 * 1024 * 1024, ge=1, le=5 * 1024**3)
    """Photos larger than this are not stored."""
    concurrency: Concurrency = 8
    """Photos fetched at a time, in each process."""


class OutputsOptions(_Group):
    """The topics that are written to."""

    dead_letter_topic: Topic
    """Where records go that cannot be processed."""
    dead_letter_max_bytes: int = Field(default=900_000, ge=1_000)
    """A larger dead letter is sent without the record's value."""
    itel_errors_topic: Topic = topics.ITEL_ERRORS
    """Submissions that failed."""
    itel_success_topic: Topic = topics.ITEL_SUCCESSES
    """Submissions that iTel accepted."""
    tracking_success_topic: OptionalTopic = ""
    """Events written to the table; empty: not sent."""
    output_topic: OptionalTopic = ""
    """trigger: publish there, instead of the topics that the rules name."""
    transactions: Literal["on", "off"] = "on"
    """trigger: messages and offsets in one transaction, each event once for committed readers; off: at least once."""
    triggers: str = ""
    """YAML file of rules; default: the rule for cabinet repair forms. The other jobs take the task ids from it."""


class MonitoringOptions(_Group):
    """What the job reports about itself."""

    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Answer /metrics (Prometheus) and /healthz at this port, or the next free one after it; 0: do not."""
    stuck_after_seconds: PositiveSeconds = 120.0
    """/healthz says stuck when the process has done nothing for so long."""
    log_format: LogFormat = "auto"
    """Log lines as text or JSON objects; auto: text on a terminal, else JSON."""


# ------------------------------------------------------------------------------------------------------------ settings


class Settings(_Group):
    """All that a job is configured with, made by :meth:`of`. Holds references to secrets, never secrets."""

    job: Job
    """Which of the four jobs to run."""
    source: SourceOptions
    outage_patience_seconds: Seconds = 120.0
    """How long to wait for a broker, table store or API that is away before failing."""
    contract: ContractOptions
    claimx: ClaimXOptions
    itel: ItelOptions
    http: HttpOptions
    tables: TablesOptions
    media: MediaOptions
    outputs: OutputsOptions
    monitoring: MonitoringOptions

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Settings:
        """The settings that options make, each given by its name; None is one that is not given.

        Raises:
            OptionError: with every problem there is.
        """
        options = {OLD_NAMES.get(name, name): value for name, value in given.items() if value is not None}
        problems = [
            OptionError.about(name, f"no such option{find_nearest(name)}") for name in sorted({*options} - {*_OPTIONS})
        ]
        has_job = options.get("job") in set(Job)
        if has_job:
            contract, refusals = _load_contract(options)
            problems += refusals
            options = _fill_in(options, contract)
        values: dict[str, Any] = {group: {} for group, _ in _OPTIONS.values() if group}
        for name, (group, _) in _OPTIONS.items():
            if name in options:
                (values[group] if group else values)[name] = options[name]
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            found = [_describe(one) for one in error.errors(include_url=False)]
            # Without a job, what it decides is missing too.
            problems += [one for one in found if has_job or one.field == "job"]
        if has_job:
            reported = {problem.field for problem in problems}
            problems += [one for one in _find_missing(options) if one.field not in reported]
        if not problems:
            problems = settings._find_contradictions()
        if problems:
            raise OptionError.join(problems)
        return settings

    def _find_contradictions(self) -> list[OptionError]:
        """What no field shows by itself: the settings of io check it when they are made."""
        checks: list[tuple[str, Callable[[], object]]] = [("claimx", self.claimx_settings)]
        if self.fetches_media:
            checks.append(("media", self.media_settings))
        if self.job.calls_itel and self.itel.folder is None:
            checks.append(("itel", self.itel_settings))
        if self.job.calls_itel and self.itel.shadow_url:
            checks.append(("itel", self.shadow_settings))
        problems = self._find_half_a_resubmission()
        for group, make in checks:
            try:
                make()
            except ContractError as error:
                problems += [
                    OptionError.about("itel_shadow_contract", f"{error.source}: {one}") for one in error.problems
                ]
            except ValueError as error:
                problems.append(name_option(group, error))
        return problems

    def _find_half_a_resubmission(self) -> list[OptionError]:
        tables = self.tables
        if bool(tables.resubmit) != bool(tables.resubmission):
            given, other = ("resubmit", "resubmission") if tables.resubmit else ("resubmission", "resubmit")
            hint = "a name of your choice" if other == "resubmission" else "what is to be sent again"
            return [OptionError.missing(other, f"--{given} needs it: {hint}")]
        if tables.resubmit and not self.keeps_ledger:
            return [OptionError.about("resubmit", "goes with a job that keeps a ledger: see --ledger")]
        return []

    @property
    def fetches_media(self) -> bool:
        return self.media.fetch == "on" and self.job.writes_tables

    @property
    def keeps_ledger(self) -> bool:
        """Whether what becomes of submissions is kept in a table, and looked up there before anything is sent."""
        return self.tables.ledger == "on" and self.job.calls_itel

    @property
    def keeps_bodies(self) -> bool:
        return self.keeps_ledger and self.tables.submission_bodies == "on"

    @property
    def uses_transactions(self) -> bool:
        return self.outputs.transactions == "on" and self.job is Job.TRIGGER

    @property
    def submitted_statuses(self) -> frozenset[str]:
        return frozenset(status.upper() for status in self.itel.statuses)

    def claimx_settings(self) -> ClaimXSettings:
        return ClaimXSettings(self.claimx_connection(), self.claimx.task_path, self.claimx.cache_seconds)

    def itel_settings(self) -> ItelSettings:
        itel, contract = self.itel, self.contract.loaded
        return ItelSettings(
            self.itel_connection(),
            itel.path,
            itel.method,
            itel.idempotency_header,
            itel.batch_size,
            itel.batch_path,
            *_read_contract(contract),
        )

    @property
    def shadow_contract(self) -> Contract | None:
        """What the second endpoint gets; None without one. Raises ContractError."""
        itel = self.itel
        if not itel.shadow_url:
            return None
        return load_contract(itel.shadow_contract, itel.shadow_vars) if itel.shadow_contract else self.contract.loaded

    def shadow_settings(self) -> ItelSettings:
        """How the second endpoint is reached. Raises ContractError."""
        itel, contract = self.itel, self.shadow_contract
        assert contract is not None
        request = contract.file.request
        same = not itel.shadow_contract
        connection = dataclasses.replace(
            self._connect("itel_shadow", itel),
            base_url=itel.shadow_url,
            auth=itel.shadow_auth or (itel.auth if same else request.auth or itel.auth),
            breaker=BreakerSettings(open_seconds=0),
            secret_headers=_secret_headers(contract),
        )
        path, method = (itel.path, itel.method) if same else (request.path, request.method)
        header = itel.idempotency_header if same else request.key.header or ""
        return ItelSettings(connection, path, method, header, 1, itel.batch_path, *_read_contract(contract))

    def media_settings(self) -> MediaSettings:
        media = self.media
        return MediaSettings(
            self.claimx_connection(),
            ObjectStoreSettings(media.root, media.storage_options),
            DownloadSettings(self._allowed_hosts(), media.deadline_seconds, media.max_bytes, media.concurrency),
            self.claimx.media_path,
        )

    def export_settings(self) -> ExportSettings:
        """What the contract needs of ClaimX beside the task."""
        lookups = self.contract.loaded.file.lookups
        media = lookups.media
        links = None
        if media is not None:
            links = LinkSettings(
                media.path, self._allowed_hosts(), media.expires_within_seconds, media.send == "target"
            )
        return ExportSettings(
            self.claimx_connection(),
            lookups.project.path if lookups.project else None,
            lookups.project.cache_seconds if lookups.project else 0.0,
            links,
            self.claimx.on_outage,
            self.outage_patience_seconds,
        )

    def _allowed_hosts(self) -> AllowedHosts:
        host = urlsplit(self.claimx.base_url).hostname or ""
        # ClaimX's name, but not its address: that would open the way to a private network unasked.
        own = () if re.fullmatch(r"[\d.]*|.*:.*", host) else (host,)
        return AllowedHosts((*self.media.allowed_hosts, *own))

    def claimx_connection(self) -> ConnectionSettings:
        return self._connect("claimx", self.claimx)

    def itel_connection(self) -> ConnectionSettings:
        return dataclasses.replace(
            self._connect("itel", self.itel), secret_headers=_secret_headers(self.contract.loaded)
        )

    def _connect(self, name: str, api: ApiOptions) -> ConnectionSettings:
        http = self.http
        same = {field.name for field in dataclasses.fields(ConnectionSettings)}
        return ConnectionSettings(
            name=name,
            tls=TlsFiles(api.ca, api.client_cert, api.client_key),
            breaker=BreakerSettings(http.breaker_failure_share, http.breaker_window_seconds, http.breaker_open_seconds),
            **api.model_dump(include=same),
            **http.model_dump(include=same),
        )


def _headers(contract: Contract) -> Iterator[tuple[str, str, bool]]:
    """A contract's headers: name, text or reference, and whether it is a reference."""
    for name, value in contract.file.request.headers.items():
        match value:
            case Secret():
                yield name, value.secret, True
            case FromVar():
                var = contract.file.vars[value.var]
                yield name, str(contract.vars.get(value.var, var.default)), var.secret
            case str():
                yield name, value, False


def _secret_headers(contract: Contract) -> tuple[tuple[str, str], ...]:
    return tuple((name, reference) for name, reference, is_secret in _headers(contract) if is_secret)


def _read_contract(contract: Contract) -> tuple[tuple[tuple[str, str], ...], tuple[AnswerRule, ...], str]:
    """The plain headers, the rules of answers, and where an answer names what has come of a submission."""
    answers = contract.file.answers
    rules = tuple(
        AnswerRule(tuple(one.status), one.means, one.contains, one.field, one.names_key) for one in answers.rules
    )
    plain = tuple((name, text) for name, text, is_secret in _headers(contract) if not is_secret)
    return plain, rules, answers.created_id


# --------------------------------------------------------------------------------------------------------------- names


def _find_options() -> dict[str, tuple[str, FieldInfo]]:
    """By its name, each option's group (``""`` is Settings itself) and field."""
    options: dict[str, tuple[str, FieldInfo]] = {}
    for group, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Group):
            options |= {inner.alias or name: (group, inner) for name, inner in kind.model_fields.items()}
        else:
            options[group] = ("", field)
    return options


_OPTIONS = _find_options()
for _name, _field in ApiOptions.model_fields.items():
    _option = ItelOptions.model_fields[_name]
    if _option.description == _field.description:
        _option.description = f"As --claimx_{_name}."


def option_fields() -> dict[str, FieldInfo]:
    """Every option by its name, group after group: type, default, constraints, description."""
    return {name: field for name, (_, field) in _OPTIONS.items()}


def required_options(job: Job) -> list[str]:
    """The options without which a job does not run, and which have no default."""
    return [
        "bootstrap_servers",
        "claimx_url",
        *(["itel_url"] if job.calls_itel else []),
        *(["tables_root"] if job.writes_tables else []),
    ]


def name_option(group: str, error: Exception) -> OptionError:
    """An error that io raises for the settings made of a group, with the option of the field at fault."""
    field = getattr(error, "field", None) or ""
    # What is fetched from ClaimX has settings of both groups.
    for kind in (Settings.model_fields[name].annotation for name in (group, "claimx")):
        fields = getattr(kind, "model_fields", {})
        if field in fields:
            return OptionError.about(fields[field].alias or field, str(error))
    return OptionError(str(error))


def find_nearest(name: str) -> str:
    """How to go on after an unknown option: with the nearest that there is, or with the list."""
    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    return f"; did you mean --{close[0]}?" if close else ": see `itel-cabinet run --help`"


def _load_contract(options: Mapping[str, Any]) -> tuple[Contract | None, list[OptionError]]:
    """The contract, or what is wrong with it or with what is given for it."""
    given = {name: options[name] for name in ("contract", "contract_vars") if name in options}
    try:
        chosen = ContractOptions.model_validate(given)
    except ValidationError:
        return None, []  # reported with all other options
    try:
        return load_contract(chosen.name, chosen.vars), []
    except ContractError as error:
        return None, [
            OptionError.about("contract_vars", one.text)
            if one.place == "vars"
            else OptionError.about("contract", f"{error.source}: {one}")
            for one in error.problems
        ]


def _contract_defaults(contract: Contract) -> dict[str, Any]:
    """What a contract says in place of options that are not given."""
    request = contract.file.request
    said = {
        "itel_url": request.base_url,
        "itel_auth": request.auth,
        "itel_path": request.path,
        "itel_method": request.method,
        "itel_idempotency_header": request.key.header or "",
        "itel_statuses": tuple(contract.file.tasks.statuses),
        "itel_batch_path": request.batch.path if request.batch else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _fill_in(options: dict[str, Any], contract: Contract | None) -> dict[str, Any]:
    """The options with what the job, the contract, the environment and the other options say where they say nothing."""
    environment = {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}
    media = {"media": "on"} if options.get("media_root") else {}
    ledger = {"ledger": "on"} if options.get("tables_root") else {}
    said = _contract_defaults(contract) if contract else {}
    return {**said, **environment, **JOB_DEFAULTS[Job(options["job"])], **media, **ledger, **options}


_HINTS = {
    "bootstrap_servers": "give it or set KAFKA_BOOTSTRAP_SERVERS",
    "claimx_url": "give ClaimX's base URL or set CLAIMX_API_BASE_URL",
    "itel_url": "give iTel's base URL or set ITEL_CABINET_API_BASE_URL (file:DIR writes the payloads to a folder)",
    "tables_root": "give the folder or object-store URI that holds the tables",
    "media_root": "give the folder or object-store URI for photos, or --media=off",
}


def _find_missing(options: Mapping[str, Any]) -> list[OptionError]:
    """What this job needs and others do not."""
    job = Job(options["job"])
    needed = [*required_options(job), *(["media_root"] if options.get("media") == "on" else [])]
    if job.calls_itel and options.get("ledger") == "on":
        needed.append("tables_root")
    return [OptionError.missing(name, _HINTS[name]) for name in dict.fromkeys(needed) if not options.get(name)]


def _describe(problem: Mapping[str, Any]) -> OptionError:
    """The line for a problem that pydantic has found."""
    where = problem["loc"]
    name = str(where[1] if len(where) > 1 else where[0])
    if problem["type"] == "missing":
        return OptionError.missing(name, _HINTS.get(name, "give it"))
    return OptionError.about(name, problem["msg"].removeprefix("Value error, "))
