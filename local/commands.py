"""The commands of `itel-cabinet` that come with the local tools: sample events, and simulators of both APIs.

The distribution `itel-cabinet-local` registers them as entry points; a production install is without them. To be
listed by `itel-cabinet --help` this module is imported, so what takes long to import is imported in the functions.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itel_cabinet.pipeline.commands import (
    BROKER_SECONDS,
    DEFAULT_CONTRACT,
    PROGRAM,
    AsJson,
    CommandError,
    ContractName,
    ContractVars,
    Servers,
    asking,
    load,
    print_json,
    print_rows,
    read_vars,
)
from itel_cabinet.pipeline.topics import CLAIMX_EVENTS, TASK_EVENTS

if TYPE_CHECKING:
    from itel_cabinet.transforms.contracts import Contract

__all__ = ["produce", "simulate"]


class Flavour(StrEnum):
    """What kind of records to produce."""

    TRACKING = "tracking"
    CLAIMX = "claimx"


_STEP = timedelta(seconds=2)  # between events
_FLAVOUR_TOPICS = {Flavour.TRACKING: TASK_EVENTS, Flavour.CLAIMX: CLAIMX_EVENTS}


def produce(
    bootstrap_servers: Servers,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Where to; default: itel.cabinet.task.tracking or the flavour's.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many records.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same records, but for their time.")] = 0,
    flavour: Annotated[
        Flavour, typer.Option("--flavour", help="Messages for the trackers, or ClaimX events for the trigger.")
    ] = Flavour.TRACKING,
    claimx_url: Annotated[
        str | None, typer.Option("--claimx_url", metavar="URL", help="The simulator that gets the forms behind.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Records a second; default: as fast as can be.")
    ] = None,
    contract: ContractName = DEFAULT_CONTRACT,
    as_json: AsJson = False,
) -> None:
    """Write sample events to a topic, good and bad ones, and the forms behind them to a ClaimX simulator."""
    import requests
    from rich.console import Console
    from rich.progress import track

    from itel_cabinet.io.kafka import Cluster
    from itel_cabinet.local.samples import Generator
    from itel_cabinet.local.samples import produce as produce_records

    topic = topic or _FLAVOUR_TOPICS[flavour]
    with asking(bootstrap_servers):
        Cluster({"bootstrap.servers": bootstrap_servers}, timeout=BROKER_SECONDS).topic(topic)
    # Steps are up to half as long again: no event is dated in the future.
    start = datetime.now(UTC) - 1.5 * count * _STEP
    generator = Generator(seed, start=start, step=_STEP, contract=load(contract, {}, complete=False))
    records = generator.tracking_messages(count) if flavour is Flavour.TRACKING else generator.claimx_events(count)
    progress = Console(stderr=True)
    shown = track(records, f"to {topic}", total=count, console=progress, disable=not progress.is_terminal)
    try:
        receipts = produce_records(bootstrap_servers, topic, shown, claimx_url, rate=rate)
    except requests.RequestException as error:
        raise CommandError(
            f"--claimx_url: no ClaimX simulator takes the forms at {claimx_url} ({type(error).__name__}): "
            f"start one with `{PROGRAM} simulate`"
        ) from None
    except RuntimeError as error:
        raise CommandError(f"--bootstrap_servers: {error}") from None
    counts = Counter((r.produced.kind, r.produced.expect) for r in receipts)
    rows = [{"kind": kind, "expected": expected, "records": n} for (kind, expected), n in sorted(counts.items())]
    if as_json:
        print_json({"topic": topic, "records": len(receipts), "kinds": rows})
        return
    typer.echo(f"{len(receipts)} records written to {topic}:")
    print_rows({name: name for name in ("kind", "expected", "records")}, rows)


def simulate(
    claimx_port: Annotated[int | None, typer.Option("--claimx_port", min=1, max=65535, help="Default: free.")] = None,
    itel_port: Annotated[int | None, typer.Option("--itel_port", min=1, max=65535, help="Default: a free one.")] = None,
    itel_journal: Annotated[
        Path | None, typer.Option("--itel_journal", metavar="DIR", help="Write what iTel accepts there, for people.")
    ] = None,
    claimx_token: Annotated[
        str | None,
        typer.Option(
            "--claimx_token", metavar="REF", help="The token, or user:password, to demand: env:NAME, file:PATH."
        ),
    ] = None,
    itel_token: Annotated[
        str | None, typer.Option("--itel_token", metavar="REF", help="The token to demand: env:NAME or file:PATH.")
    ] = None,
    contract: ContractName = DEFAULT_CONTRACT,
    contract_vars: ContractVars = "{}",
) -> None:
    """Play ClaimX and iTel, the latter as a contract has it, until Ctrl-C or SIGTERM."""
    try:
        from itel_cabinet.local.simulators import ItelSimulator
    except ModuleNotFoundError as error:
        raise CommandError(f"simulate needs the package {error.name}: pip install {error.name}") from None
    from itel_cabinet.local.simulators import ClaimXSimulator, serve

    loaded = load(contract, read_vars(contract_vars), complete=False)
    claimx = ClaimXSimulator(port=claimx_port, token=_secret("--claimx_token", claimx_token))
    try:
        itel = ItelSimulator(
            port=itel_port,
            token=_secret("--itel_token", itel_token),
            journal=itel_journal,
            contract=loaded,
            headers=_headers(loaded),
        )
    except OSError as error:
        raise CommandError(f"--itel_journal: {itel_journal} cannot be written: {error.strerror}") from None
    try:
        for option, simulator in (("--claimx_port", claimx), ("--itel_port", itel)):
            try:
                simulator.start()
            except OSError as error:
                raise CommandError(
                    f"{option}: {simulator.port} cannot be used ({error.strerror}): give another one"
                ) from None

        def tell() -> None:
            print(f"ClaimX simulator at {claimx.url}\niTel simulator at {itel.url}", flush=True)

        serve([claimx, itel], tell)
    finally:
        claimx.stop()
        itel.stop()


def _headers(contract: Contract) -> dict[str, str]:
    """What iTel demands of each call beside its token: the contract's headers, with the secrets in."""
    from itel_cabinet.transforms.contracts import FromVar

    headers: dict[str, str] = {}
    for name, value in contract.file.request.headers.items():
        match value:
            case str():
                headers[name] = value
            case FromVar() if value.var in contract.vars:
                secret = contract.file.vars[value.var].secret
                given = str(contract.vars[value.var])
                headers[name] = (_secret("--contract_vars", given) or "") if secret else given
    return headers


def _secret(option: str, reference: str | None) -> str | None:
    from itel_cabinet.io.secrets import SecretRef, UnresolvedSecretError

    if reference is None:
        return None
    try:
        return SecretRef.parse(reference).resolve()
    except ValueError as error:
        raise CommandError(f"{option}: {error}", wrong_use=True) from None
    except UnresolvedSecretError as error:
        raise CommandError(f"{option}: {error}") from None
