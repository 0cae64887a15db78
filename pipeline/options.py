"""Every parameter once: name, type, default, meaning; read once into a :class:`Settings` that all else takes."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from itel_cabinet.io.claimx import ClaimXSettings
from itel_cabinet.io.http import AllowedHosts, Auth, BreakerSettings, ConnectionSettings, DownloadSettings, TlsFiles
from itel_cabinet.io.itel import ItelSettings, folder_of
from itel_cabinet.io.kafka import client_config
from itel_cabinet.io.objects import ObjectStoreSettings
from itel_cabinet.io.photos import MediaSettings
from itel_cabinet.io.worker import LogFormat, RefusedError

__all__ = [
    "ENVIRONMENT",
    "JOB_DEFAULTS",
    "Job",
    "JsonObject",
    "OptionError",
    "Settings",
    "nearest",
]


class OptionError(RefusedError, ValueError):
    """Wrong use: the message is one line that names the option and says what to do."""

    exit_status = 2


class Job(StrEnum):
    """What can be run; see docs/architecture.md."""

    TRIGGER = "trigger"
    TRACKING = "tracking"
    API = "api"
    CABINET = "cabinet"

    @property
    def writes_tables(self) -> bool:
        return self in (Job.TRACKING, Job.CABINET)

    @property
    def calls_itel(self) -> bool:
        return self in (Job.API, Job.CABINET)


ENVIRONMENT = {
    "bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS",
    "claimx_url": "CLAIMX_API_BASE_URL",
    "itel_url": "ITEL_CABINET_API_BASE_URL",
}
"""Options that fall back to an environment variable of the brief."""

_TRACKING_TOPIC = "itel.cabinet.task.tracking"

JOB_DEFAULTS: dict[Job, dict[str, Any]] = {
    Job.TRIGGER: {
        "input_topic": "claimx.events.enriched",
        "consumer_group": "itel_cabinet_trigger_group",
        "max_batch_records": 500,
        "max_batch_seconds": 0.02,
        "dead_letter_topic": f"{_TRACKING_TOPIC}.errors",
    },
    Job.TRACKING: {
        "input_topic": _TRACKING_TOPIC,
        "consumer_group": "itel_cabinet_tracking_worker_group",
        "max_batch_records": 10_000,
        "max_batch_seconds": 1.0,
        "dead_letter_topic": f"{_TRACKING_TOPIC}.errors",
    },
    Job.API: {
        "input_topic": _TRACKING_TOPIC,
        "consumer_group": "itel_cabinet_api_worker_group",
        "max_batch_records": 500,
        "max_batch_seconds": 0.2,
        "dead_letter_topic": "itel.cabinet.api.errors",
    },
    Job.CABINET: {
        "input_topic": _TRACKING_TOPIC,
        "consumer_group": "itel_cabinet_group",
        "max_batch_records": 500,
        "max_batch_seconds": 0.2,
        "dead_letter_topic": f"{_TRACKING_TOPIC}.errors",
    },
}


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or any(not isinstance(v, str | int | float) for v in document.values()):
        raise ValueError('must be a JSON object of texts and numbers such as {"name": "value"}')
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in document.items()}


def _comma_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _without_secrets(options: dict[str, str]) -> dict[str, str]:
    for name in options:
        if _STORE_SECRET.search(name):
            raise ValueError(f"{name} is a secret: set it in the environment of the job's workers instead")
    return options


def _by_reference(auth: str) -> str:
    Auth.parse(auth)
    return auth


# What object stores call their secrets; the names of files and ids that lead to one are harmless.
_STORE_SECRET = re.compile(
    r"(secret|token|password|sas_|(account|access|master|customer|sas)_key)(?!.*_(file|id)$)", re.IGNORECASE
)

JsonObject = Annotated[dict[str, str], BeforeValidator(_json_object)]
StoreOptions = Annotated[JsonObject, AfterValidator(_without_secrets)]
Reference = Annotated[str, AfterValidator(_by_reference)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
CallsPerSecond = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]
# In json_schema_extra stands what templates/metadata.json says beyond the type: its paramType where that is more than
# the type tells, and its group, which lasts until a field names the next.
_WRITTEN = {"paramType": "KAFKA_WRITE_TOPIC"}
InputTopic = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$", json_schema_extra={"paramType": "KAFKA_READ_TOPIC"})
]
OutputTopic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$", json_schema_extra=_WRITTEN)]
OptionalTopic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,249}$", json_schema_extra=_WRITTEN)]


class Settings(BaseModel):
    """All that a job is told. Frozen; holds references to secrets, never secrets.

    Options whose default depends on the job are declared without one here and get it from the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    job: Job = Field(description="Which of the four jobs to run.", json_schema_extra={"group": "Job"})

    bootstrap_servers: str = Field(
        min_length=1,
        description="Kafka brokers, HOST:PORT[,HOST:PORT]; else KAFKA_BOOTSTRAP_SERVERS.",
        json_schema_extra={"group": "Kafka"},
    )
    kafka_config: JsonObject = Field(
        default={}, description="More librdkafka settings as a JSON object; passwords as env:NAME or file:PATH."
    )
    input_topic: InputTopic = Field(description="The topic to read.")
    consumer_group: str = Field(min_length=1, max_length=249, description="The group whose offsets say what is done.")
    start_offset: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where a partition starts that the group has no offset of."
    )
    shards: int = Field(
        default=1, ge=1, le=1024, description="Shards that read side by side; partitions are dealt out."
    )
    until_caught_up: bool = Field(default=False, description="Finish once the topic's present end is reached.")
    topic_epoch: int = Field(
        default=0, ge=0, description="For brokers without topic ids: raise it after recreating the input topic."
    )
    max_batch_records: int = Field(ge=1, le=1_000_000, description="A batch ends at this many records ...")
    max_batch_seconds: Seconds = Field(description="... or this long after its first record.")
    outage_patience_seconds: Seconds = Field(
        default=120.0, description="How long to wait for a broker, table store or API that is away before failing."
    )

    claimx_url: str | None = Field(
        default=None,
        description="ClaimX's base URL; else CLAIMX_API_BASE_URL.",
        json_schema_extra={"group": "ClaimX"},
    )
    claimx_auth: Reference = Field(
        default="bearer:env:CLAIMX_API_TOKEN",
        description="none, bearer:REF, basic:REF:REF, api_key:HEADER:REF or oauth2:TOKEN_URL:REF:REF[:scope=SCOPE] "
        "(the client's id and secret); REF is env:NAME or file:PATH.",
    )
    claimx_ca: str | None = Field(
        default=None, description="PEM file of certificates to trust beside the usual authorities."
    )
    claimx_client_cert: str | None = Field(
        default=None, description="PEM file of the certificate to show the server (mTLS), with its chain."
    )
    claimx_client_key: str | None = Field(
        default=None, description="PEM file of that certificate's key, if it is not in the same file."
    )
    claimx_task_path: str = Field(
        default="/customTasks/assignment/{assignment_id}?full=true", description="Where a task is looked up."
    )
    claimx_media_path: str = Field(
        default="/export/project/{project_id}/media?mediaIds={media_ids}", description="Where links to photos are."
    )
    claimx_cache_seconds: Seconds = Field(default=60.0, description="How long an answer may be used again; 0 never.")
    claimx_on_outage: Literal["wait", "divert"] = Field(
        default="wait", description="ClaimX is away: wait and then fail, or divert the records to the dead letters."
    )
    claimx_deadline_seconds: Seconds = Field(default=30.0, gt=0, description="Bounds one lookup with all its tries.")
    claimx_connect_timeout_seconds: Seconds = Field(
        default=5.0, gt=0, description="Bounds finding the host and connecting, at each try."
    )
    claimx_read_timeout_seconds: Seconds = Field(default=10.0, gt=0, description="Bounds the answer of each try.")
    claimx_calls_per_second: CallsPerSecond = Field(
        default=0.0, description="How often each worker process may call, tries after the first included; 0: no limit."
    )
    form_wait_seconds: Seconds = Field(
        default=1.0, description="A completed task without a form is looked up once more, this long after its event."
    )

    itel_url: str | None = Field(
        default=None,
        description="iTel's base URL, or file:DIR to write payloads there; else ITEL_CABINET_API_BASE_URL.",
        json_schema_extra={"group": "iTel"},
    )
    itel_path: str = Field(default="/api/v1/tasks", pattern="^/", description="Where submissions are sent.")
    itel_method: Literal["POST", "PUT"] = Field(default="POST", description="How submissions are sent.")
    itel_auth: Reference = Field(default="bearer:env:ITEL_CABINET_API_TOKEN", description="As --claimx_auth.")
    itel_ca: str | None = Field(default=None, description="As --claimx_ca.")
    itel_client_cert: str | None = Field(default=None, description="As --claimx_client_cert.")
    itel_client_key: str | None = Field(default=None, description="As --claimx_client_key.")
    itel_idempotency_header: str = Field(
        default="Idempotency-Key", pattern="^[A-Za-z0-9-]+$", description="The header that carries the event id."
    )
    itel_statuses: CommaList = Field(
        default=("COMPLETED",), min_length=1, description="Task statuses that are submitted, separated by commas."
    )
    itel_deadline_seconds: Seconds = Field(default=30.0, gt=0, description="Bounds one submission with all its tries.")
    itel_connect_timeout_seconds: Seconds = Field(default=5.0, gt=0, description="As --claimx_connect_timeout_seconds.")
    itel_read_timeout_seconds: Seconds = Field(default=10.0, gt=0, description="As --claimx_read_timeout_seconds.")
    itel_calls_per_second: CallsPerSecond = Field(default=0.0, description="As --claimx_calls_per_second.")
    itel_on_outage: Literal["divert", "wait"] = Field(
        default="divert",
        description="iTel is away: divert submissions to the error topic, or wait until it is back.",
    )
    itel_batch_size: int = Field(default=1, ge=1, le=1_000, description="Submissions sent in one call.")
    itel_batch_path: str = Field(default="/api/v1/tasks/batch", pattern="^/", description="Where batches are sent.")
    max_retries: int = Field(default=9, ge=0, le=100, description="Tries after the first, for ClaimX and iTel.")
    http_concurrency: int = Field(default=32, ge=1, le=256, description="Calls at a time, for each API and process.")
    breaker_failure_share: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="An API is not called for a while when this share of the last tries (20 at least) failed ...",
    )
    breaker_window_seconds: Seconds = Field(default=20.0, gt=0, description="... which are those of so many seconds.")
    breaker_open_seconds: Seconds = Field(
        default=15.0, description="How long it is left in peace before one call looks whether it is back; 0: never."
    )

    tables_root: str | None = Field(
        default=None,
        description="Folder or object-store URI that holds the tables.",
        json_schema_extra={"group": "Tables"},
    )
    storage_options: StoreOptions = Field(
        default={}, description="Object-store options of delta-rs as a JSON object; secrets belong in the environment."
    )
    partition_by: CommaList = Field(
        default=("year", "month", "day"), description="Partition columns of the tracking table, when it is created."
    )

    media: Literal["on", "off"] = Field(
        default="off",
        description="Fetch the files of photos; on by itself where --media_root is given.",
        json_schema_extra={"group": "Media"},
    )
    media_root: str | None = Field(default=None, description="Folder or object-store URI where photo files go.")
    media_storage_options: StoreOptions = Field(
        default={}, description="Options of obstore for --media_root as a JSON object; secrets in the environment."
    )
    media_allowed_hosts: CommaList = Field(
        default=("*.amazonaws.com",),
        description=(
            "Where links to photos and their redirects may lead, beside ClaimX's own host: names, *.domain, and "
            "addresses or networks, without which private ones are refused; separated by commas."
        ),
    )
    media_deadline_seconds: Seconds = Field(
        default=10.0, gt=0, description="A batch waits no longer for its photos; the rest is for `media backfill`."
    )
    media_max_bytes: int = Field(
        default=25 * 1024 * 1024, ge=1, le=5 * 1024**3, description="Photos larger than this are not stored."
    )
    media_concurrency: int = Field(default=8, ge=1, le=256, description="Photos fetched at a time, in each process.")

    dead_letter_topic: OutputTopic = Field(
        description="Where records go that cannot be processed.", json_schema_extra={"group": "Kafka outputs"}
    )
    dead_letter_max_bytes: int = Field(
        default=900_000, ge=1_000, description="A larger dead letter is sent without the record's value."
    )
    itel_errors_topic: OutputTopic = Field(default="itel.cabinet.api.errors", description="Submissions that failed.")
    itel_success_topic: OutputTopic = Field(
        default="itel.cabinet.api.success", description="Submissions that iTel accepted."
    )
    tracking_success_topic: OptionalTopic = Field(
        default="", description="Events written to the table; empty: not sent."
    )
    output_topic: OptionalTopic = Field(default="", description="trigger: publish there whatever the rules say.")
    triggers: str | None = Field(default=None, description="trigger: YAML file of rules; default: the brief's rule.")

    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Answer /metrics (Prometheus) and /healthz at this port, or the next free one after it; 0: do not.",
        json_schema_extra={"group": "Monitoring"},
    )
    stuck_after_seconds: Seconds = Field(
        default=120.0, gt=0, description="/healthz says stuck when the process has done nothing for so long."
    )
    log_format: LogFormat = Field(
        default="auto", description="Log lines as text or JSON objects; auto: text on a terminal, else JSON."
    )

    @model_validator(mode="before")
    @classmethod
    def _job_defaults(cls, given: Any) -> Any:
        """Fill in what the job and the environment decide."""
        if not isinstance(given, dict) or given.get("job") not in set(Job):
            return given
        media = {"media": "on"} if given.get("media_root") else {}
        environment = {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}
        return {**environment, **JOB_DEFAULTS[Job(given["job"])], **media, **given}

    @model_validator(mode="after")
    def _complete(self) -> Settings:
        """Refuse what this job cannot do without."""
        if self.claimx_url is None:
            raise OptionError("--claimx_url is missing: give ClaimX's base URL or set CLAIMX_API_BASE_URL")
        if self.job.calls_itel and self.itel_url is None:
            raise OptionError(
                "--itel_url is missing: give iTel's base URL or set ITEL_CABINET_API_BASE_URL "
                "(file:DIR writes the payloads to a folder)"
            )
        if self.job.writes_tables and not self.tables_root:
            raise OptionError("--tables_root is missing: give the folder or object-store URI that holds the tables")
        if self.media == "on" and not self.media_root:
            raise OptionError(
                "--media_root is missing: give the folder or object-store URI for photos, or --media=off"
            )
        try:
            client_config(self.bootstrap_servers, self.kafka_config)
            ClaimXSettings(self.claimx_connection(), self.claimx_task_path, self.claimx_cache_seconds)
            if self.fetches_media:
                self.media_settings()
            if self.job.calls_itel and folder_of(self.itel_url or "") is None:
                self.itel_settings()
        except ValueError as error:
            raise OptionError(str(error)) from None
        return self

    def claimx_connection(self) -> ConnectionSettings:
        return self._connection("claimx")

    @property
    def fetches_media(self) -> bool:
        return self.media == "on" and self.job.writes_tables

    def media_settings(self) -> MediaSettings:
        """Raises ValueError, which names the option."""
        host = urlsplit(self.claimx_url or "").hostname or ""
        # ClaimX's name, but not its address: that would open the way to a private network without anyone's say.
        own = () if re.fullmatch(r"[\d.]*|.*:.*", host) else (host,)
        try:
            allowed = AllowedHosts((*self.media_allowed_hosts, *own))
        except ValueError as error:
            raise ValueError(f"--media_allowed_hosts: {error}") from None
        try:
            store = ObjectStoreSettings(self.media_root or "", self.media_storage_options)
        except ValueError as error:
            raise ValueError(f"--media_root: {error}") from None
        return MediaSettings(
            self.claimx_connection(),
            store,
            DownloadSettings(allowed, self.media_deadline_seconds, self.media_max_bytes, self.media_concurrency),
            self.claimx_media_path,
        )

    def itel_connection(self) -> ConnectionSettings:
        return self._connection("itel")

    def _connection(self, api: Literal["claimx", "itel"]) -> ConnectionSettings:
        def of(option: str) -> Any:
            return getattr(self, f"{api}_{option}")

        return ConnectionSettings(
            name=api,
            base_url=of("url") or "",
            auth=of("auth"),
            deadline_seconds=of("deadline_seconds"),
            connect_timeout_seconds=of("connect_timeout_seconds"),
            read_timeout_seconds=of("read_timeout_seconds"),
            max_retries=self.max_retries,
            concurrency=self.http_concurrency,
            tls=TlsFiles(of("ca") or "", of("client_cert") or "", of("client_key") or ""),
            calls_per_second=of("calls_per_second"),
            breaker=BreakerSettings(self.breaker_failure_share, self.breaker_window_seconds, self.breaker_open_seconds),
        )

    def itel_settings(self) -> ItelSettings:
        return ItelSettings(
            self.itel_connection(),
            self.itel_path,
            self.itel_method,
            self.itel_idempotency_header,
            self.itel_batch_size,
            self.itel_batch_path,
        )

    @property
    def submitted_statuses(self) -> frozenset[str]:
        return frozenset(status.upper() for status in self.itel_statuses)

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Settings:
        """Validate. Raises OptionRefused with one line for the first thing that is wrong."""
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            raise OptionError(f"--{unknown[0]}: no such option{nearest(unknown[0], cls.model_fields)}")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=True)[0]
            refused = first.get("ctx", {}).get("error")
            if isinstance(refused, OptionError):
                raise refused from None
            name = str(first["loc"][0]) if first["loc"] else "job"
            if first["type"] == "missing":
                variable = f" or set {ENVIRONMENT[name]}" if name in ENVIRONMENT else ""
                raise OptionError(f"--{name} is missing: give it{variable}") from None
            raise OptionError(f"--{name}: {first['msg'].removeprefix('Value error, ')}") from None


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """What to say of a name that is none of those ``known``: the nearest of them, or where they stand."""
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean --{close[0]}?" if close else ": see `itel-cabinet run --help`"
