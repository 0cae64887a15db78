"""JSON as other writers make it: with a BOM, in another charset, with half a character or NaN in it.

What JSON does not allow is put right where that costs one value, and said; only what cannot be read at all is refused.
Pure and thread-safe.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic_core import from_json, to_json

__all__ = ["read_charset", "read_json", "read_json_text"]

_DEEPEST = 200  # levels, as pydantic's reader has it
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_HALF_CHARACTER = "half a character (a lone surrogate) became U+FFFD"
_NOT_A_NUMBER = "NaN or an infinity became null"


def read_json(raw: bytes, charset: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """The content of a JSON text, and what had to be put right in it, one line each.

    Args:
        raw: UTF-8, with or without a BOM; UTF-16 or UTF-32; or, if it is none of these, in ``charset``.
        charset: as its sender has declared it; an unknown one counts as none.

    Of a key given twice the last counts. Raises ValueError, without the text, for what is not JSON.
    """
    try:
        return from_json(raw, allow_inf_nan=False), ()
    except ValueError as error:
        refusal = error
    try:
        content = json.loads(_decode(raw, charset), strict=False)
    except (ValueError, RecursionError, LookupError):  # LookupError: an unknown charset
        raise ValueError(str(refusal)) from None
    repairs: set[str] = set()
    return _repaired(content, repairs, 0), tuple(sorted(repairs))


def read_json_text(raw: bytes) -> tuple[Any, tuple[str, ...], str]:
    """What :func:`read_json` gives, and the text itself: as it came, or written again where something had to be put
    right. Raises ValueError."""
    try:
        # Where any reader takes it as it came, writing it again would cost as much as reading it.
        return from_json(raw, allow_inf_nan=False), (), raw.decode()
    except ValueError:
        content, repairs = read_json(raw)
        return content, repairs, to_json(content).decode()


def read_charset(content_type: str | None) -> str | None:
    """The charset that a ``Content-Type`` declares, if it does."""
    found = _CHARSET.search(content_type) if content_type else None
    return found[1] if found else None


def _decode(raw: bytes, charset: str | None) -> str:
    encoding = json.detect_encoding(raw)
    if not encoding.startswith("utf-8"):
        return raw.decode(encoding, errors="replace")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        pass
    try:
        # Each half of a character by itself, as some writers encode them: the halves of a pair are put together again.
        halves = raw.decode(encoding, errors="surrogatepass").encode("utf-16-le", errors="surrogatepass")
        return halves.decode("utf-16-le", errors="surrogatepass")
    except UnicodeDecodeError:
        return raw.decode(charset or encoding)


def _repaired(value: Any, repairs: set[str], depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"nested over {_DEEPEST} levels")
    match value:
        case str() if _LONE_SURROGATE.search(value):
            repairs.add(_HALF_CHARACTER)
            return _LONE_SURROGATE.sub("\ufffd", value)
        case float() if not math.isfinite(value):
            repairs.add(_NOT_A_NUMBER)
            return None
        case list():
            return [_repaired(one, repairs, depth + 1) for one in value]
        case dict():
            return {_repaired(key, repairs, depth): _repaired(one, repairs, depth + 1) for key, one in value.items()}
    return value
