"""URLs as a person gives them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["check_url"]


def check_url(text: str, *, query: bool = False) -> str:
    """``text``, if it is an http(s) URL without user and fragment (and without a query, unless ``query``); else
    ValueError. The error never quotes a URL that holds a user."""
    if "@" in text:  # first of all: the other texts quote the URL
        raise ValueError("must not hold a user or password")
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port  # the port is checked when it is asked for
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"must be http(s)://HOST[:PORT][/PATH], got {text!r}")
    if (url.query and not query) or url.fragment:
        raise ValueError(f"must have no query and no fragment, got {text!r}")
    return text
