"""What the commands of `itel-cabinet` share: options of the same meaning, and errors as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.jobs import Job

if TYPE_CHECKING:
    from itel_cabinet.io.delta import TableSpec
    from itel_cabinet.io.kafka import Cluster
    from itel_cabinet.pipeline.options import Settings
    from itel_cabinet.transforms.contracts import Contract

__all__ = [
    "BOTH_SPELLINGS",
    "PROGRAM",
    "AsJson",
    "CommandError",
    "DryRun",
    "KafkaConfig",
    "Servers",
    "StorageOptions",
    "TablesRoot",
    "WatchSeconds",
    "asking",
    "client_settings",
    "open_cluster",
    "read_age",
    "read_moment",
    "read_since",
    "storing",
    "table_settings",
    "tables_at",
]

PROGRAM = "itel-cabinet"
BROKER_SECONDS = 10.0

BOTH_SPELLINGS = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "help_option_names": ["--help", "-h"],
}


class CommandError(typer.TyperException):
    """A command cannot do what it was asked. ``message`` is one line that names the option and what to do."""

    def __init__(self, message: str, *, wrong_use: bool = False) -> None:
        super().__init__(message)
        self.exit_code = 2 if wrong_use else 1


Servers = Annotated[
    str,
    typer.Option(
        "--bootstrap_servers",
        envvar="KAFKA_BOOTSTRAP_SERVERS",
        metavar="HOST:PORT[,HOST:PORT]",
        help="Kafka brokers.",
    ),
]
KafkaConfig = Annotated[
    str,
    typer.Option(
        "--kafka_config",
        metavar="JSON",
        help="More librdkafka settings as a JSON object; passwords as env:NAME or file:PATH.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Only say what would be done.")]
TablesRoot = Annotated[
    str, typer.Option("--tables_root", metavar="URI", help="Folder or object-store URI that holds the tables.")
]
StorageOptions = Annotated[
    str,
    typer.Option(
        "--storage_options",
        metavar="JSON",
        help="Object-store options of delta-rs as a JSON object; secrets belong in the environment.",
    ),
]
WatchSeconds = Annotated[
    float,
    typer.Option(
        "--watch_seconds", min=0, max=600, help="How long to look whether a job is at work before anything is changed."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_moment(option: str, text: str | None) -> datetime | None:
    """A date and time that an option gives, as an aware one in UTC."""
    from itel_cabinet.transforms.events import parse_timestamp

    try:
        return parse_timestamp(text) if text else None
    except ValueError as error:
        reason = f"must be a date and time such as 2026-01-10T15:00 (UTC where no zone is named): {error}"
        raise CommandError(f"--{option}: {reason}", wrong_use=True) from None


@contextmanager
def asking(bootstrap_servers: str) -> Iterator[None]:
    """What Kafka refuses in here, and topics that are not there, as one line."""
    from confluent_kafka import KafkaException

    from itel_cabinet.io.kafka import UnknownTopicError
    from itel_cabinet.pipeline.refusals import describe_kafka_error, describe_missing_topic

    try:
        yield
    except KafkaException as error:
        raise CommandError(describe_kafka_error(error, bootstrap_servers)) from None
    except UnknownTopicError as error:
        raise CommandError(f"--topic: {describe_missing_topic(error)}") from None


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def read_age(option: str, text: str) -> timedelta:
    """A time span that an option gives, such as 90s, 15m, 1h or 30d."""
    parts = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not parts:
        raise CommandError(
            f"--{option}: must be a number and s, m, h or d, such as 1h or 30d, got {text[:50]!r}", wrong_use=True
        )
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def read_since(option: str, text: str | None, now: datetime) -> datetime | None:
    """As :func:`read_moment`; or, of a time span such as 30d, the moment so long ago."""
    if text and re.fullmatch(r"[0-9]+[a-z]", text):
        return now - read_age(option, text)
    return read_moment(option, text)


def client_settings(bootstrap_servers: str, kafka_config: str) -> dict[str, object]:
    """librdkafka's settings, with the secrets in."""
    from pydantic import TypeAdapter, ValidationError

    from itel_cabinet.io.kafka import client_config, resolve_config
    from itel_cabinet.io.secrets import UnresolvedSecretError
    from itel_cabinet.pipeline.kafka_config import LibrdkafkaConfig

    try:
        more: dict[str, str] = TypeAdapter(LibrdkafkaConfig).validate_python(kafka_config)
        return resolve_config(client_config(bootstrap_servers, more))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CommandError(f"--kafka_config: {reason}", wrong_use=True) from None
    except UnresolvedSecretError as error:
        raise CommandError(f"--kafka_config: {error}") from None


@contextmanager
def open_cluster(bootstrap_servers: str, kafka_config: str) -> Iterator[Cluster]:
    from itel_cabinet.io.kafka import Cluster

    client = client_settings(bootstrap_servers, kafka_config)
    with asking(bootstrap_servers):
        yield Cluster(client, timeout=BROKER_SECONDS)


def table_settings(**given: str) -> Settings:
    """Settings that say what tables are made of; what else they demand plays no part here."""
    from itel_cabinet.pipeline.options import OptionError, Settings

    unused = {"bootstrap_servers": "unused:9092", "claimx_url": "http://unused", "claimx_auth": "none"}
    try:
        return Settings.of({"job": Job.TRACKING, **unused, **given})
    except OptionError as error:
        raise CommandError(str(error), wrong_use=True) from None


def tables_at(tables_root: str, storage_options: str, contract: Contract | None = None) -> dict[str, TableSpec]:
    """The specifications of the tables, by name; as a contract has them, by default the default one."""
    from itel_cabinet.pipeline.tables import table_specs

    return table_specs(table_settings(tables_root=tables_root, storage_options=storage_options), contract)


@contextmanager
def storing() -> Iterator[None]:
    """What the table store refuses in here, as one line."""
    from itel_cabinet.io.delta import TableError
    from itel_cabinet.io.worker import OutageError
    from itel_cabinet.pipeline.refusals import describe_table_error

    try:
        yield
    except (TableError, OutageError) as error:
        raise CommandError(describe_table_error(error)) from error
