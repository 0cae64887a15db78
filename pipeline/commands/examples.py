"""Examples for each command's ``--help``."""

from __future__ import annotations

from typing import Any

from itel_cabinet.pipeline.commands.shared import PROGRAM

__all__ = ["EXAMPLES", "add_examples"]

_KAFKA = "--bootstrap_servers=broker:9092"
_TABLES = "--tables_root=/data/tables"
_GROUP = f"--group=itel_cabinet_group --topic=itel.cabinet.task.tracking {_KAFKA}"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        f"run tracking {_KAFKA} --claimx_url=https://claimx.example --claimx_auth=bearer:file:/run/claimx {_TABLES}",
        "run cabinet --template=cabinet.local --tables_root=/data/tables",
    ),
    "query": (f"query stuck {_TABLES}", f"query latest_events {_TABLES} --format=csv"),
    "reconcile": (
        f"reconcile {_TABLES} --older_than=1h",
        f"reconcile {_TABLES} --since=30d --leave_out=held --json",
        f"reconcile {_TABLES} {_KAFKA} --resubmit --dry_run",
    ),
    "trace": (f"trace 5430007 {_TABLES} {_KAFKA}",),
    "submissions list": (
        f"submissions list {_TABLES} --outcome=refused --since=24h",
        f"submissions list {_TABLES} --assignment_id=5430007 --json",
    ),
    "submissions show": (f"submissions show 5430007 {_TABLES} --body",),
    "questions": (f"questions {_TABLES}",),
    "report": (f"report {_TABLES} --output=report.html",),
    "erase": (
        f"erase --assignment_id=4711 {_TABLES} --media_root=/data/media {_KAFKA} --dry_run",
        f"erase --project_id=80312,80313 {_TABLES} --media_root=/data/media {_KAFKA} --json",
    ),
    "preview": (
        "preview answer.json",
        "preview answer.json --contract=mine.yaml --event=event.json --project=project.json --media=media.json",
    ),
    "contract list": ("contract list",),
    "contract show": ("contract show vendor",),
    "contract schema": ("contract schema",),
    "contract backtest": (
        f"contract backtest --contract=mine.yaml {_TABLES}",
        f"contract backtest --contract=mine.yaml --against=cabinet_repair {_TABLES} --since=2026-01-01 --json",
    ),
    "contract check": (
        "contract check mine.yaml",
        """contract check mine.yaml --vars='{"carrier_id": "C-1", "subscription_key": "env:ITEL_KEY"}'""",
    ),
    "lag": (f"lag tracking api {_KAFKA}",),
    "status": (f"status cabinet {_KAFKA} {_TABLES} --metrics_url=http://worker:9400",),
    "produce": (f"produce {_KAFKA} --count=500 --claimx_url=http://localhost:8080",),
    "simulate": ("simulate --claimx_port=8080 --itel_port=8081",),
    "topics create": (f"topics create {_KAFKA} --dry_run",),
    "topics describe": (f"topics describe {_KAFKA}",),
    "tables create": (f"tables create {_TABLES}",),
    "tables describe": (f"tables describe {_TABLES} --json",),
    "tables optimize": (
        f"tables optimize {_TABLES}",
        f"tables optimize {_TABLES} --table=claimx_itel_forms --z_order=assignment_id",
    ),
    "tables rederive": (f"tables rederive {_TABLES} --contract=mine.yaml --dry_run",),
    "tables purge": (
        f"tables purge {_TABLES} --older_than=400d --media_root=/data/media --dry_run",
        f"tables purge {_TABLES} --older_than=90d --table=itel_cabinet_submission_bodies",
    ),
    "tables vacuum": (f"tables vacuum {_TABLES} --dry_run",),
    "tables restore": (f"tables restore {_TABLES} --table=claimx_itel_forms --version=41 {_KAFKA} --dry_run",),
    "tables fence show": (f"tables fence show {_TABLES} --table=claimx_itel_forms",),
    "tables fence set": (f"tables fence set {_TABLES} --table=claimx_itel_forms --to_start --dry_run",),
    "media backfill": (
        f"media backfill {_TABLES} --media_root=/data/media --claimx_url=https://claimx.example "
        "--claimx_auth=bearer:file:/run/claimx --dry_run",
    ),
    "dead-letters list": (
        f"dead-letters list {_KAFKA} --count",
        f"dead-letters list {_KAFKA} --stage=submit --since=2026-01-10T15:00",
    ),
    "dead-letters show": (f"dead-letters show Zx3kQ0aTQ2iV0hF5p2l1Ww/2/41 {_KAFKA}",),
    "dead-letters replay": (
        f"dead-letters replay {_KAFKA} {_TABLES} --stage=payload --error_class=no_form --dry_run",
        f"dead-letters replay {_KAFKA} {_TABLES} --to_group=itel_cabinet_group",
    ),
    "dead-letters export": (f"dead-letters export Zx3kQ0aTQ2iV0hF5p2l1Ww/2/41 {_KAFKA} --to=letter.json",),
    "dead-letters edit": (
        f"dead-letters edit Zx3kQ0aTQ2iV0hF5p2l1Ww/2/41 {_KAFKA} --from=letter.json {_TABLES} --dry_run",
    ),
    "offsets show": (f"offsets show {_GROUP} --json",),
    "offsets reset": (
        f"offsets reset {_GROUP} --to_time=2026-01-10T15:00 --dry_run",
        f"offsets reset {_GROUP} --to_offset=0=120,1=98",
    ),
    "offsets copy": (
        f"offsets copy --from=OLD_GROUP --to=itel_cabinet_group --topic=itel.cabinet.task.tracking {_KAFKA} --dry_run",
    ),
    "monitoring export": ("monitoring export /etc/itel-cabinet --docs_url=https://wiki.example/itel-cabinet/docs",),
    "templates list": ("templates list",),
    "templates schema": ("templates schema",),
    "templates check": ("templates check", "templates check mine.yaml"),
    "templates render": ("templates render tracking.flink --tables_root=/data/tables --format=kubernetes",),
}
"""What may be typed after the program's name, by command."""


def add_examples(command: Any, path: str = "") -> None:
    """Put the examples below the help of a click command, and of all below it."""
    for name, one in getattr(command, "commands", {}).items():
        add_examples(one, f"{path} {name}".strip())
    if path in EXAMPLES:
        lines = [f"{PROGRAM} {example}" for example in EXAMPLES[path]]
        command.epilog = "\n\n".join(["For example:", *lines])
