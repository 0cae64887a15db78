"""How texts that people type into a form's design are compared: by their words, not by their typography."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

__all__ = ["normalize"]

_ONE_KIND = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u02d7\ufe58\ufe63\uff0d"), "-")
_ONE_KIND |= dict.fromkeys(
    map(ord, "\u2018\u2019\u201a\u201b\u2032\u2035\u00b4\u0060\u02b9\u02bc\u02c8\u2039\u203a"), "'"
)
_ONE_KIND |= dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u2036\u00ab\u00bb\u301d\u301e\u301f\u02ba"), '"')


@lru_cache(maxsize=8_192)
def normalize(text: str) -> str:
    """``text`` in the one form that all its spellings have: Unicode's NFKC without case, one space for any run of white
    space, no invisible characters, one kind of dashes and of quotes.

    Cached, since a form's questions are the same each time; bounded, since they may be anything.
    """
    visible = "".join(one for one in text if not _is_invisible(one)).translate(_ONE_KIND)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return " ".join(folded.translate(_ONE_KIND).split())


def _is_invisible(character: str) -> bool:
    """Zero-width and format characters, variation selectors, and controls that are no white space."""
    category = unicodedata.category(character)
    return (
        category in ("Cf", "Co", "Cn")
        or "\ufe00" <= character <= "\ufe0f"
        or (category == "Cc" and not character.isspace())
        or character in "\u2800\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
    )
