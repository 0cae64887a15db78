"""The commands `itel-cabinet media ...`."""

from __future__ import annotations

from collections import Counter

import typer
from rich.console import Console

from itel_cabinet.pipeline.commands.printing import make_console, some
from itel_cabinet.pipeline.commands.shared import CommandError, DryRun, storing

__all__ = ["media_app"]

media_app = typer.Typer(help="The files of the photos on the forms.")


@media_app.command("backfill", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def backfill_media(context: typer.Context, dry_run: DryRun = False) -> int:
    """Fetch the photo files that rows of the attachments table lack, and tell the rows where they are.

    Takes the options of `run tracking`, of which --tables_root, --media_root and ClaimX's are needed; no broker is. May
    run beside the jobs, be interrupted and repeated. What fails again stays without a file, with the reason in the
    row's media_warning. Exit status 1 if none of them has a file now.
    """
    from rich.progress import Progress

    from itel_cabinet.io.delta import create_table, get_table
    from itel_cabinet.io.objects import ObjectStoreError, get_objects
    from itel_cabinet.io.secrets import UnresolvedSecretError
    from itel_cabinet.pipeline.launch import parse_arguments, with_template
    from itel_cabinet.pipeline.operate import BackfillStoppedError, backfill_photos, missing_photos
    from itel_cabinet.pipeline.options import OptionError
    from itel_cabinet.pipeline.tables import ATTACHMENTS
    from itel_cabinet.pipeline.wiring import Wiring

    try:
        job, *options = with_template(["tracking", *context.args])
        settings, _ = parse_arguments(job, ["--bootstrap_servers=unused:9092", *options])
    except OptionError as error:
        raise CommandError(str(error), wrong_use=True) from None
    if not settings.fetches_media:
        raise CommandError("--media_root is missing: give the folder or object-store URI for photos", wrong_use=True)
    wiring = Wiring(settings)
    console, progress = make_console(), Console(stderr=True)
    ended: Counter[str] = Counter()
    try:
        with storing():
            spec = wiring.tables[ATTACHMENTS]
            if create_table(spec, dry_run=True).version is None:
                raise CommandError(f"--tables_root: there is no table {spec.uri}: give the root that the jobs write to")
            table = get_table(spec)
            missing = missing_photos(table)
        assignments = len({row["assignment_id"] for row in missing})
        photos = f"{some(len(missing), 'photo')} of {some(assignments, 'assignment')} without a file"
        console.print(photos, soft_wrap=True)
        if dry_run or not missing:
            return 0
        settings.claimx_connection().credentials()
        get_objects(settings.media_settings().store).check()
        with Progress(console=progress, transient=True, disable=not progress.is_terminal) as bar, storing():
            task = bar.add_task("photos", total=len(missing))
            for counts in backfill_photos(wiring, table, missing):
                ended += counts
                bar.advance(task, counts.total())
    except ObjectStoreError as error:
        raise CommandError(f"--media_root: {error}") from None
    except (UnresolvedSecretError, BackfillStoppedError) as error:
        raise CommandError(f"{error}; {ended.total()} of {len(missing)} photos were tried") from None
    finally:
        for what, count in sorted(ended.items()):
            console.print(f"  {what}: {count}", soft_wrap=True)
    return 0 if ended["stored"] or ended["known"] else 1
