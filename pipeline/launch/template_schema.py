"""The JSON Schema of launch templates, for editors that complete and check them while they are written."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from itel_cabinet.pipeline.launch.templates import Template
from itel_cabinet.pipeline.options import OLD_NAMES, option_fields

__all__ = ["make_template_schema"]


def make_template_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), with every option's type, bounds, default and description from the settings."""
    document = Template.model_json_schema()
    definitions = document["$defs"]
    options = _make_options_schema()
    definitions |= options.pop("$defs", {})
    document["properties"]["parameters"] = options
    document["properties"]["beam"] = {"description": "Beam's own options by name.", "type": ["object", "null"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document, "title": "Launch template"}


def _make_options_schema() -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: (
            # A blank is given at launch.
            (Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation) | None,  # type: ignore[operator]
            Field(default=None if field.is_required() else field.default, description=field.description),
        )
        for name, field in option_fields().items()
        if name != "job"
    }
    options = create_model("Parameters", __config__=ConfigDict(extra="forbid"), **fields).model_json_schema()
    for old, new in OLD_NAMES.items():
        options["properties"][old] = {**options["properties"][new], "deprecated": True}
    for option in options["properties"].values():
        option.pop("title", None)
        if option.get("default", "") is None:
            del option["default"]
    return {**options, "title": "Options", "description": "The options of `itel-cabinet run`, by name."}
