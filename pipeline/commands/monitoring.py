"""The commands `itel-cabinet monitoring ...`: see docs/monitoring.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from itel_cabinet.pipeline.commands.shared import CommandError

__all__ = ["monitoring_app"]

monitoring_app = typer.Typer(help="What Prometheus and Grafana are given.")


@monitoring_app.command("export")
def export_monitoring(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is missing.")],
    docs_url: Annotated[
        str, typer.Option("--docs_url", help="Where the folder docs/ is published, for the alerts' links.")
    ] = "docs",
) -> None:
    """Write Prometheus's rules and Grafana's dashboards into a folder; files that are there are replaced."""
    from importlib.resources import files

    source = files("itel_cabinet.monitoring")
    dashboards = source / "dashboards"
    wanted = [(source / "alerts.yml", folder / "alerts.yml")]
    wanted += [(one, folder / "dashboards" / one.name) for one in dashboards.iterdir() if one.name.endswith(".json")]
    if re.search(r"[^\x21-\x7e]|[\"\\]", docs_url):
        raise CommandError("--docs_url: not a URL: no blanks, quotes or backslashes")
    try:
        for content, path in sorted(wanted, key=lambda pair: str(pair[1])):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content.read_text(encoding="utf-8")
            text = text.replace('runbook_url: "docs/', f'runbook_url: "{docs_url.rstrip("/")}/')
            path.write_text(text, encoding="utf-8")
            typer.echo(str(path))
    except OSError as error:
        raise CommandError(f"FOLDER: {error.filename} cannot be written: {error.strerror}") from None
