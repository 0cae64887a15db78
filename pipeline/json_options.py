"""What jobs and commands take as a JSON object, as a type for pydantic."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["JsonObject"]


def _parse_json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or any(not isinstance(v, str | int | float) for v in document.values()):
        raise ValueError('must be a JSON object of texts and numbers such as {"name": "value"}')
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in document.items()}


JsonObject = Annotated[dict[str, str], BeforeValidator(_parse_json_object)]
