"""References to secrets: what an option may hold in a secret's place.

``env:NAME`` is an environment variable and ``file:PATH`` a file (a mounted secret), read where the job's workers run.
Options, the graph, logs and dead letters only ever see the reference.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itel_cabinet.io.worker import RefusedError

__all__ = ["SecretRef", "UnresolvedSecretError"]

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd\ud800-\udfff]")
_MAX_FILE_BYTES = 65_536  # no header takes more; keeps a mistaken path (a log, a device) from being read whole


class UnresolvedSecretError(RefusedError):
    """A reference that leads to no usable secret. The text names the reference and what to do, never the value."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is: ``name`` is the variable's name (``kind`` is ``env``) or the file's path (``file``)."""

    kind: Literal["env", "file"]
    name: str

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        """Read ``env:NAME`` or ``file:PATH``.

        Raises ValueError without quoting ``text``: a person who errs here may have written the secret itself.
        """
        kind, _, name = text.partition(":")
        if kind == "env" and _ENVIRONMENT_NAME.fullmatch(name):
            return cls("env", name)
        if kind == "file" and name and not _UNPRINTABLE.search(name):
            return cls("file", name)
        raise ValueError("a secret must be referred to as env:NAME or file:PATH (what was given is not shown)")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def resolve(self, *, any_text: bool = False) -> str:
        """Read the secret now, without the white space and the byte order mark around it.

        ``any_text`` allows what no HTTP header can carry: other alphabets, and several lines (a key in PEM form).
        Raises UnresolvedSecretError.
        """
        found = self._from_environment() if self.kind == "env" else self._from_file()
        value = found.removeprefix("\ufeff").strip()
        if not value:
            raise UnresolvedSecretError(f"{self} is empty: put the secret there, where the job's workers run")
        if any_text:
            if _NO_TEXT.search(value):
                raise UnresolvedSecretError(f"{self} is no text in UTF-8")
        elif _UNPRINTABLE.search(value):
            raise UnresolvedSecretError(f"{self} holds a line break or a character that no HTTP header can carry")
        return value

    def _from_environment(self) -> str:
        value = os.environ.get(self.name)
        if value is None:
            raise UnresolvedSecretError(f"{self} is not set: set this environment variable where the job's workers run")
        return value

    def _from_file(self) -> str:
        try:
            with Path(self.name).open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UnresolvedSecretError(f"{self} cannot be read: {error.strerror}") from None
        if len(content) > _MAX_FILE_BYTES:
            raise UnresolvedSecretError(f"{self} is larger than {_MAX_FILE_BYTES} bytes: this is not a secret's file")
        return content.decode("utf-8", errors="replace")
