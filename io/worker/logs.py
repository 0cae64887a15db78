"""What log lines look like: text for a terminal, a JSON object each for a log collector.

A JSON line has ``timestamp``, ``level``, ``logger``, ``message``, ``job`` and ``group``; a line about a record also
``stage``, ``error_class``, ``event_id``, ``assignment_id``, ``topic``, ``topic_id``, ``partition``, ``offset`` and
``trace_id``. No line holds personal data or a secret.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

__all__ = ["LogFormat", "drop_known_warnings", "format_logs"]

LogFormat = Literal["auto", "text", "json"]


def format_logs(kind: LogFormat, *, job: str, group: str) -> None:
    """Give the root logger's handlers the format: ``auto`` is text where stderr is a terminal, else JSON."""
    if kind == "text" or (kind == "auto" and sys.stderr.isatty()):
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    else:
        formatter = JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp=True,
            static_fields={"job": job, "group": group},
        )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def drop_known_warnings() -> None:
    """Leave out what Beam logs at import: that Google's client libraries are missing, which is intended. Idempotent."""
    logging.getLogger().addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("apitools not found")
