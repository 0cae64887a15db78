"""The command `itel-cabinet preview`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json

from itel_cabinet.pipeline.commands.contract_choice import DEFAULT_CONTRACT, ContractName, ContractVars, load, read_vars
from itel_cabinet.pipeline.commands.shared import CommandError
from itel_cabinet.pipeline.operate import NotAnAnswerError, PreviewContext, preview_answer

__all__ = ["preview"]


def preview(
    task: Annotated[str, typer.Argument(metavar="TASK.json", help="A ClaimX answer about a task; - for stdin.")],
    contract: ContractName = DEFAULT_CONTRACT,
    contract_vars: ContractVars = "{}",
    event: Annotated[
        str | None, typer.Option("--event", metavar="E.json", help="A message of the tracking topic about the task.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="P.json", help="ClaimX's export of the project.")
    ] = None,
    media: Annotated[
        str | None, typer.Option("--media", metavar="M.json", help="ClaimX's export of the project's media.")
    ] = None,
) -> None:
    """Print what would be stored and sent for a ClaimX answer: form, attachments, payload, request, gate, warnings.

    Left out are the columns that come from the event and the moment: event_id, event_timestamp, kafka_*, ingested_at,
    created_at, updated_at. Secrets are shown as their references.
    """
    files = {"answer": task, "event": event, "project": project, "media": media}
    texts = {name: _read(file) for name, file in files.items() if file is not None}
    loaded = load(contract, read_vars(contract_vars), complete=False)
    try:
        result = preview_answer(texts.pop("answer"), loaded, context=PreviewContext(**texts), now=datetime.now(UTC))
    except NotAnAnswerError as error:
        raise CommandError(f"{files[error.given]}: {error}") from None
    typer.echo(to_json(result, indent=2, inf_nan_mode="null"))


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", wrong_use=True) from None
