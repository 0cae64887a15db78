"""Starting a job: its command line and templates, the checks before it runs, the runners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from itel_cabinet.pipeline.launch.arguments import FlinkOptions, parse_arguments
    from itel_cabinet.pipeline.launch.job import launch, main
    from itel_cabinet.pipeline.launch.template_schema import make_template_schema
    from itel_cabinet.pipeline.launch.templates import (
        Template,
        TemplateError,
        check_template,
        list_templates,
        load_template,
        render_command,
        render_manifests,
        with_template,
    )

__all__ = [
    "FlinkOptions",
    "Template",
    "TemplateError",
    "check_template",
    "launch",
    "list_templates",
    "load_template",
    "main",
    "make_template_schema",
    "parse_arguments",
    "render_command",
    "render_manifests",
    "with_template",
]

# Beam takes a second to import, and most commands do without it.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arguments": ["FlinkOptions", "parse_arguments"],
        "job": ["launch", "main"],
        "template_schema": ["make_template_schema"],
        "templates": [
            "Template",
            "TemplateError",
            "check_template",
            "render_command",
            "load_template",
            "render_manifests",
            "list_templates",
            "with_template",
        ],
    },
)
