"""The conversions that a contract may name under ``do``: a closed set, and what installed packages add.

A conversion gets a value that is not null, of one of its kinds, and gives another, or null. Each is bounded in time and
in what it makes of a text. A package adds its own by the entry point group ``itel_cabinet.conversions``: a function of
one value, called by the entry point's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from typing import Any

__all__ = ["CONVERSIONS", "Argument", "Conversion", "Function", "Kind", "find_conversion", "is_affirmative", "is_set"]

Function = Callable[[Any], Any]
Kind = str
"""What a value is: ``text``, ``integer``, ``decimal``, ``yes_no``, ``instant``, ``list``, ``object`` or ``any``."""

_ENTRY_POINTS = "itel_cabinet.conversions"
_MOST_WORDS = 1_000
_LONGEST = 10_000
# One class of characters, or a run of them: a search takes one pass over the text.
_ONE_CLASS = re.compile(r"(\[\^?(?:[^\]\[\\]|\\.)+\]|\\[dDwWsS])\+?")
_DIRECTIVES = re.compile(r"(?:[^%]|%[YmdHMSfjyBbAazZ%])*")


@dataclass(frozen=True)
class Argument:
    """What a conversion takes: its JSON type, and whether it can be left out."""

    type: type | tuple[type, ...]
    required: bool = True
    least: int | None = None
    most: int | None = None

    def refuse(self, value: Any) -> str | None:
        """Why a value is not taken."""
        kinds = self.type if isinstance(self.type, tuple) else (self.type,)
        names: str = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
        if not isinstance(value, self.type) or (isinstance(value, bool) and bool not in kinds):
            return f"must be {names}"
        number: Any = value
        if self.least is not None and number < self.least:
            return f"must be at least {self.least}"
        if self.most is not None and number > self.most:
            return f"must be at most {self.most}"
        return None


_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


@dataclass(frozen=True)
class Conversion:
    """One entry of the set.

    Attributes:
        make: gives the function for the arguments; raises ValueError for some that make no sense together.
        takes: the kinds of values that it works on.
        gives: the kind of what comes out.
        arguments: by name; ``""`` is the one that stands alone, ``{pad_words: 10}``.
        summary: one line for people.
    """

    make: Callable[..., Function]
    takes: tuple[Kind, ...]
    gives: Kind
    summary: str
    arguments: Mapping[str, Argument]


def is_set(value: Any) -> bool:
    """Whether a value says something: not null, false, 0, empty."""
    return bool(value)


def is_affirmative(value: Any) -> bool:
    """Whether an answer means yes: true, the text ``true``, or one that begins with ``yes``, in any case."""
    if isinstance(value, str):
        text = value.strip().lower()
        return text.startswith("yes") or text == "true"
    return value is True


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value) else None
    return int(value) if float(value).is_integer() else None


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)\s*", value):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _round_half_up(value: float) -> int:
    whole = int(value)
    return whole + (1 if value > 0 else -1) if abs(value - whole) >= 0.5 else whole


def _drop_prefix(text: str, at_length: int | None = None) -> Function:
    def convert(value: str) -> str:
        fits = value.startswith(text) and (at_length is None or len(value) == at_length)
        return value[len(text) :] if fits else value

    return convert


def _replace(with_: str, text: str | None = None, pattern: str | None = None) -> Function:
    if (text is None) == (pattern is None):
        raise ValueError("give either text or pattern")
    if text is not None:
        if not text:
            raise ValueError("text must not be empty")
        return lambda value: value.replace(text, with_)
    assert pattern is not None
    if not _ONE_CLASS.fullmatch(pattern):
        raise ValueError(r"pattern must be one class of characters such as [^0-9]+ or \s+")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: {error}") from None
    return lambda value: compiled.sub(lambda _: with_, value)


def _slice(start: int = 0, end: int | None = None) -> Function:
    return lambda value: value[start:end]


def _pad_left(to: int, with_: str) -> Function:
    if len(with_) != 1:
        raise ValueError("with must be one character")
    return lambda value: value.rjust(to, with_)


def _pad_words(least: int) -> Function:
    def convert(value: str) -> str:
        words = value.split()
        if not words or len(words) >= least:
            return value if words else ""
        return " ".join(words * -(-least // len(words)))

    return convert


def _date_format(form: str) -> Function:
    if not _DIRECTIVES.fullmatch(form):
        raise ValueError("has a directive that is not known; there are %Y %m %d %H %M %S %f %j %y %B %b %A %a %z %Z %%")
    return lambda value: value.strftime(form)


def _lookup(table: Mapping[str, Any], else_: Any = None) -> Function:
    if any(isinstance(one, list | dict) for one in table.values()):
        raise ValueError("a value of the table must be a text, a number, true, false or null")
    return lambda value: table.get(_text(value), else_)


def _between(at_least: float | None = None, at_most: float | None = None) -> Function:
    low, high = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    return lambda value: value if low <= value <= high else None


_NUMBERS = ("integer", "decimal")
_PLAIN = ("text", "integer", "decimal", "yes_no")
_ANY_NUMBER = (int, float)


def _plain(function: Function) -> Callable[..., Function]:
    return lambda: function


CONVERSIONS: Mapping[str, Conversion] = {
    "text": Conversion(_plain(_text), (*_PLAIN, "instant"), "text", "as text; 7.0 becomes 7", {}),
    "trim": Conversion(_plain(str.strip), ("text",), "text", "without blanks around it", {}),
    "upper": Conversion(_plain(str.upper), ("text",), "text", "in upper case", {}),
    "lower": Conversion(_plain(str.lower), ("text",), "text", "in lower case", {}),
    "single_spaces": Conversion(
        _plain(lambda value: " ".join(value.split())), ("text",), "text", "one space for any run of white space", {}
    ),
    "digits": Conversion(
        _plain(lambda value: re.sub(r"[^0-9]", "", _text(value))), ("text", "integer"), "text", "its digits alone", {}
    ),
    "drop_prefix": Conversion(
        _drop_prefix,
        ("text",),
        "text",
        "without this beginning, if the whole has at_length characters",
        {"text": Argument(str), "at_length": Argument(int, required=False, least=1)},
    ),
    "replace": Conversion(
        _replace,
        ("text",),
        "text",
        "each text, or match of a pattern that is one class of characters, replaced",
        {"text": Argument(str, required=False), "pattern": Argument(str, required=False), "with": Argument(str)},
    ),
    "slice": Conversion(
        _slice,
        ("text", "list"),
        "same",
        "the part from start to before end, counted from 0; negative from the end",
        {"start": Argument(int, required=False), "end": Argument(int, required=False)},
    ),
    "truncate": Conversion(
        lambda most: lambda value: value[:most],
        ("text",),
        "text",
        "at most so many characters",
        {"": Argument(int, least=1)},
    ),
    "pad_left": Conversion(
        _pad_left,
        ("text",),
        "text",
        "filled up on the left",
        {"to": Argument(int, least=1, most=_LONGEST), "with": Argument(str)},
    ),
    "pad_words": Conversion(
        _pad_words,
        ("text",),
        "text",
        "repeated whole until it has so many words; an empty text stays empty",
        {"": Argument(int, least=1, most=_MOST_WORDS)},
    ),
    "whole_number": Conversion(
        _plain(_whole_number), ("text", *_NUMBERS), "integer", "as a whole number; null if it is none", {}
    ),
    "number": Conversion(_plain(_number), ("text", *_NUMBERS), "decimal", "as a number; null if it is none", {}),
    "round_half_even": Conversion(_plain(round), _NUMBERS, "integer", "to a whole number, a half to the even one", {}),
    "round_half_up": Conversion(
        _plain(_round_half_up), _NUMBERS, "integer", "to a whole number, a half away from 0", {}
    ),
    "between": Conversion(
        _between,
        _NUMBERS,
        "same",
        "null outside of these bounds",
        {"at_least": Argument(_ANY_NUMBER, required=False), "at_most": Argument(_ANY_NUMBER, required=False)},
    ),
    "date_format": Conversion(
        _date_format, ("instant",), "text", "a moment (UTC) in strftime's form", {"": Argument(str)}
    ),
    "lookup": Conversion(
        _lookup,
        _PLAIN,
        "any",
        "what a table has for exactly this text; else another value, or null",
        {"table": Argument(dict), "else": Argument((str, int, float, bool), required=False)},
    ),
    "affirmative": Conversion(
        _plain(is_affirmative), ("text", "yes_no"), "yes_no", "true for true and for what begins with yes", {}
    ),
}


@cache
def find_conversion(name: str) -> Conversion | None:
    """A conversion of the set, or of an installed package; None if there is none of this name."""
    if name in CONVERSIONS:
        return CONVERSIONS[name]
    for found in entry_points(group=_ENTRY_POINTS, name=name):
        function: Function = found.load()
        kinds = (*_PLAIN, "instant", "list", "object")
        return Conversion(_plain(function), kinds, "any", str(found.value), {})
    return None
