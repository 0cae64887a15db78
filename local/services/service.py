"""What the servers of this machine have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import requests

__all__ = ["Service", "answers"]


class Service(ABC):
    """Something that runs, and is stopped where its context ends."""

    @abstractmethod
    def stop(self) -> None:
        """End it. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def answers(url: str) -> bool:
    """Whether a GET is answered within a second, with any status."""
    try:
        requests.get(url, timeout=1.0)
    except requests.RequestException:
        return False
    return True
