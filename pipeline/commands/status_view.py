"""What `itel-cabinet status` prints: for programs as JSON, for people as a screen. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from itel_cabinet.pipeline.commands.lag_view import describe_age, describe_place, round_seconds
from itel_cabinet.pipeline.operate import Health, Observed, Offsets, RecentLetters, Tables, Unseen, Verdict

__all__ = ["status_report", "status_view"]

Report = dict[str, Any]
_COLOURS = {Health.HEALTHY: "green", Health.LAGGING: "yellow", Health.WAITING: "yellow", Health.UNKNOWN: "yellow"}


def status_report(seen: Observed, found: Verdict, now: datetime) -> Report:
    """All of a look at a job; what could not be looked at is ``{"error": REASON}``."""
    return {
        "at": now.isoformat(timespec="milliseconds"),
        "job": seen.job,
        "group": seen.group,
        "topic": seen.topic,
        "verdict": found.health.value,
        "reason": found.reason,
        "fix": found.fix,
        "offsets": _error(seen.offsets) if isinstance(seen.offsets, Unseen) else _offsets(seen.offsets),
        "workers": [
            {
                "url": worker.url,
                "state": worker.state.value,
                "detail": worker.detail,
                "seconds_since_heartbeat": worker.seconds_since_heartbeat,
                "stuck_after_seconds": worker.stuck_after_seconds,
                "waiting_for": list(worker.waiting_for),
                "version": worker.version,
            }
            for worker in seen.workers
        ],
        "tables": _error(seen.tables) if isinstance(seen.tables, Unseen) else _tables(seen.tables, seen.offsets),
        "dead_letters": _error(seen.letters) if isinstance(seen.letters, Unseen) else _letters(seen.letters),
    }


def _error(source: Unseen) -> Report:
    return {"error": source.reason}


def _offsets(offsets: Offsets) -> Report:
    return {
        "topic_id": offsets.topic_id,
        "lag": offsets.lag,
        "oldest_unread_seconds": round_seconds(offsets.oldest_unread_seconds),
        "watched_seconds": round_seconds(offsets.seconds),
        "moved": offsets.moved,
        "read_per_second": round_seconds(offsets.reading),
        "arriving_per_second": round_seconds(offsets.arriving),
        "partitions": [
            {"partition": p.partition, "start": p.start, "end": p.end, "committed": p.committed, "lag": p.lag}
            | {"note": describe_place(p)}
            for p in offsets.now
        ],
    }


def _tables(tables: Tables | None, offsets: Offsets | Unseen) -> Report | None:
    if tables is None:
        return None
    return {
        "moved": tables.moved,
        "rows_ahead_of_offsets": None if isinstance(offsets, Unseen) else tables.ahead_of(offsets),
        "tables": [
            {
                "name": table.name,
                "version": table.version,
                "committed_at": _iso(table.committed_at),
                "newest_event": _iso(table.newest_event),
                "newest_written": _iso(table.newest_written),
            }
            for table in tables.tables
        ],
    }


def _letters(letters: RecentLetters | None) -> Report | None:
    if letters is None:
        return None
    return {
        "last_hour": sum(letters.last_hour.values()),
        "last_hour_is_partial": letters.partial,
        "counted": sum(letters.counts.values()),
        "open": letters.open,
        "oldest_open_at": _iso(_time(letters.oldest_open_at)),
        "replayed": letters.replayed,
        "messages_read": letters.read,
        "messages_held": letters.held,
        "reasons": [
            {"stage": stage, "error_class": kind, "last_hour": letters.last_hour.get((stage, kind), 0), "counted": n}
            for (stage, kind), n in sorted(letters.counts.items())
        ],
    }


def status_view(seen: Observed, found: Verdict, now: datetime) -> RenderableType:
    """The screen of one job."""
    parts: list[RenderableType] = [
        Text.assemble(
            f"{seen.job}: ", (found.health.value, f"bold {_COLOURS.get(found.health, 'red')}"), f": {found.reason}"
        )
    ]
    if found.fix:
        parts.append(Text(f"what to do: {found.fix}"))
    parts.append(Text(f"{seen.group} in {seen.topic}, {now.isoformat(sep=' ', timespec='seconds')}", style="dim"))
    if seen.workers:
        table = _grid("worker", "state", "says")
        for worker in seen.workers:
            table.add_row(worker.url, worker.state.value, worker.detail)
        parts.append(table)
    else:
        parts.append(Text("no process looked at: give --metrics_url", style="dim"))
    parts += [_unseen(seen.offsets)] if isinstance(seen.offsets, Unseen) else _offset_parts(seen.offsets)
    if seen.tables is not None:
        parts += (
            [_unseen(seen.tables)] if isinstance(seen.tables, Unseen) else _table_parts(seen.tables, seen.offsets, now)
        )
    if seen.letters is not None:
        parts += [_unseen(seen.letters)] if isinstance(seen.letters, Unseen) else _letter_parts(seen.letters, now)
    return Group(*parts)


def _unseen(source: Unseen) -> RenderableType:
    return Text(f"not seen: {source.reason}", style="yellow")


def _offset_parts(offsets: Offsets) -> Iterator[RenderableType]:
    oldest = offsets.oldest_unread_seconds
    waits = "" if oldest is None else f", the oldest of them {describe_age(oldest)} old"
    yield Text(
        f"offsets: {offsets.lag} behind{waits}; {offsets.arriving:.1f}/s arrive, {offsets.reading:.1f}/s are read "
        f"(watched for {offsets.seconds:.0f} s)"
    )
    table = _grid("partition", "start", "committed", "end", "lag", "", right=5)
    for p in offsets.now:
        numbers = (p.partition, p.start, "-" if p.committed is None else p.committed, p.end, p.lag)
        table.add_row(*map(str, numbers), describe_place(p))
    yield table


def _table_parts(tables: Tables, offsets: Offsets | Unseen, now: datetime) -> Iterator[RenderableType]:
    if not isinstance(offsets, Unseen):
        yield Text(f"tables: {tables.ahead_of(offsets)} records are in them whose offsets are not committed yet")
    table = _grid("table", "version", "committed", "newest event", "newest row")
    for one in tables.tables:
        version = "missing" if one.version is None else str(one.version)
        times = (one.committed_at, one.newest_event, one.newest_written)
        table.add_row(one.name, version, *(_ago(time, now) for time in times))
    yield table


def _letter_parts(letters: RecentLetters, now: datetime) -> Iterator[RenderableType]:
    least = "at least " if letters.partial else ""
    bound = (
        "" if letters.read >= letters.held else f", among the newest {letters.read} of at most {letters.held} messages"
    )
    oldest = f", the oldest written {_ago(_time(letters.oldest_open_at), now)}" if letters.open else ""
    yield Text(
        f"dead letters of this group: {least}{sum(letters.last_hour.values())} in the last hour, "
        f"{sum(letters.counts.values())} in all{bound}; {letters.replayed} replays; {letters.open} open{oldest}"
    )
    if letters.counts:
        table = _grid("stage", "error class", "last hour", "in all")
        for (stage, kind), number in sorted(letters.counts.items()):
            table.add_row(Text(stage), Text(kind), str(letters.last_hour.get((stage, kind), 0)), str(number))
        yield table


def _grid(*columns: str, right: int = 0) -> Table:
    """A table without lines, since all is to fit on one screen."""
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in table.columns[:right]:
        column.justify = "right"
    return table


def _ago(time: datetime | None, now: datetime) -> str:
    if time is None:
        return "-"
    seconds = (now - time).total_seconds()
    return f"{describe_age(seconds)} ago" if seconds >= 0 else f"in {describe_age(-seconds)}"


def _time(epoch_seconds: float | None) -> datetime | None:
    return None if epoch_seconds is None else datetime.fromtimestamp(epoch_seconds, UTC)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")
