"""Errors that a person can act on: one line, and no traceback."""

from __future__ import annotations

__all__ = ["RefusedError", "SettingError"]


class RefusedError(Exception):
    """Something is not as it must be. The message is one line that says what to do, free of secrets.

    Attributes:
        field: the field at fault of the settings object at hand (``"auth"``), or None. The message does not repeat it.
        exit_status: of a command that ends with this error.
    """

    exit_status = 1

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class SettingError(RefusedError, ValueError):
    """A value that a settings object does not accept. pydantic collects it, since it is a ValueError."""
