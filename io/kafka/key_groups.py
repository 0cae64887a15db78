"""Where Flink puts an element of a splittable DoFn, and elements that it puts where one wants them.

No matter what was shuffled before, Flink runs an element on the subtask that owns the *key group* of its encoded bytes.
A few elements, taken as they come, pile up on few subtasks and leave the others idle; those of :func:`evenly_spread` do
not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

from apache_beam.coders import StrUtf8Coder

__all__ = ["KEY_GROUPS", "evenly_spread", "key_group"]

KEY_GROUPS = 128
"""Flink's maximum parallelism: with another number of key groups, elements do not land where they are meant to."""

_BITS = 0xFFFFFFFF


def key_group(element: str) -> int:
    """The key group, below KEY_GROUPS, in which Flink's portable runner puts a splittable DoFn's element.

    Subtask ``key_group * parallelism // KEY_GROUPS`` runs it.
    """
    return _murmur(_byte_buffer_hash(StrUtf8Coder().get_impl().encode_nested(element))) % KEY_GROUPS


def evenly_spread(documents: list[dict[str, object]]) -> list[str]:
    """Each document as JSON with a ``salt``, which readers ignore, that decides on its key group.

    The k-th of K gets the middle of the k-th of K equal ranges, so subtasks of any number get equally many, give or
    take one.

    The same documents always give the same elements. Sensible up to KEY_GROUPS documents; more wrap around.
    """
    return [_salted(document, (2 * k + 1) * KEY_GROUPS // (2 * len(documents))) for k, document in enumerate(documents)]


def _salted(document: Mapping[str, object], group: int) -> str:
    candidates = (json.dumps({**document, "salt": salt}) for salt in itertools.count())
    return next(candidate for candidate in candidates if key_group(candidate) == group)


def _byte_buffer_hash(encoded: bytes) -> int:
    """``java.nio.ByteBuffer.hashCode`` as an unsigned number."""
    code = 1
    for byte in reversed(encoded):
        code = (31 * code + (byte if byte < 128 else byte - 256)) & _BITS
    return code


def _rotated(code: int, by: int) -> int:
    return ((code << by) | (code >> (32 - by))) & _BITS


def _murmur(code: int) -> int:
    """``org.apache.flink.util.MathUtils.murmurHash``, which is never negative."""
    code = _rotated((code * 0xCC9E2D51) & _BITS, 15)
    code = _rotated((code * 0x1B873593) & _BITS, 13)
    code = ((code * 5 + 0xE6546B64) & _BITS) ^ 4
    code ^= code >> 16
    code = (code * 0x85EBCA6B) & _BITS
    code ^= code >> 13
    code = (code * 0xC2B2AE35) & _BITS
    code ^= code >> 16
    if code < 0x80000000:
        return code
    return 0x100000000 - code if code != 0x80000000 else 0
