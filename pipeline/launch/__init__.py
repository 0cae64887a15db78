"""Starting a job: its command line and templates, the checks before it runs, the runners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from itel_cabinet.pipeline.launch.arguments import FlinkOptions, parse_arguments
    from itel_cabinet.pipeline.launch.job import launch, main
    from itel_cabinet.pipeline.launch.templates import (
        Template,
        TemplateRefused,
        check,
        command,
        load,
        render_manifests,
        required,
        shipped,
        with_template,
    )

__all__ = [
    "FlinkOptions",
    "Template",
    "TemplateRefused",
    "check",
    "command",
    "launch",
    "load",
    "main",
    "parse_arguments",
    "render_manifests",
    "required",
    "shipped",
    "with_template",
]

# Beam takes a second to import, and most commands do without it.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arguments": ["FlinkOptions", "parse_arguments"],
        "job": ["launch", "main"],
        "templates": [
            "Template",
            "TemplateRefused",
            "check",
            "command",
            "load",
            "render_manifests",
            "required",
            "shipped",
            "with_template",
        ],
    },
)
