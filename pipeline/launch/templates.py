"""Launch templates: a job, its runner and its options in a file, so that launches are not command lines in heads.

A template is YAML::

    description: Both branches on Flink.
    job: cabinet
    runner: FlinkRunner
    parameters:           # the options of `itel-cabinet run --help`, typed
      shards: 4
      tables_root:        # left blank: given at launch
    beam:                 # Beam's own options
      checkpointing_interval: 10000

``itel-cabinet run JOB --template FILE`` puts a template's options before those of the command line, which win. The
options that fall back to an environment variable may be missing in a template; what else a job needs stands there, if
only as a blank.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions
from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError

from itel_cabinet.io.http import Auth
from itel_cabinet.io.secrets import SecretRef, UnresolvedSecretError
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.launch.arguments import FlinkOptions, parse_arguments
from itel_cabinet.pipeline.launch.flink import is_on_flink, set_flink_options
from itel_cabinet.pipeline.launch.manifests import (
    FIXED_OPTIONS,
    Kubernetes,
    ManifestError,
    flink_application,
    flink_deployment,
    submitting_job,
)
from itel_cabinet.pipeline.options import ENVIRONMENT, OLD_NAMES, OptionError, Settings, option_fields, required_options

__all__ = [
    "Findings",
    "Template",
    "TemplateError",
    "check_template",
    "list_templates",
    "load_template",
    "render_command",
    "render_manifests",
    "with_template",
]

# For what is known only at launch, so that all else can be checked without it. Nothing is ever sent there.
_STAND_INS = {
    "bootstrap_servers": "unknown-yet:9092",
    "claimx_url": "http://unknown-yet",
    "itel_url": "http://unknown-yet",
    "tables_root": "unknown-yet",
}
# Stand in for what a template lacks, once that has been said, so that the next mistake is found too.
_MENDS = {**_STAND_INS, "checkpointing_interval": "10000", "job_endpoint": "unknown-yet:8099"}
_SHIPPED = resources.files("itel_cabinet.templates")


class TemplateError(OptionError):
    """A template that cannot be used: one line that names file, parameter and fix; see ``problems`` for each."""


Section = Annotated[dict[str, Any], BeforeValidator(lambda content: {} if content is None else content)]


class Template(BaseModel):
    """A template as it is written; made by :func:`load`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    job: Job
    runner: Literal["DirectRunner", "PrismRunner", "FlinkRunner"]
    parameters: Section = {}
    """The project's own options by name; None is a blank."""
    beam: Section = {}
    """Beam's options by name; a list repeats its option."""
    kubernetes: Kubernetes | None = None
    _file: str = PrivateAttr("")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def file(self) -> str:
        """The file's name as it was given, for messages."""
        return self._file

    def locate(self, problem: str) -> str:
        """``FILE:LINE`` of the key that a problem names, or of the section where it is missing; else ``FILE``."""
        path = problem.partition(":")[0].partition(" ")[0]
        return ":".join(map(str, filter(None, (self.file, _find_line(self._lines, path)))))

    def named_arguments(self) -> list[tuple[str, str]]:
        """Each option's name and argument, in the file's order, without the blanks."""
        found = [("runner", f"--runner={self.runner}")]
        for name, value in self.parameters.items():
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, list) else _text(value)
                found.append((name, f"--{name}={text}"))
        for name, value in self.beam.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool):
                    found += [(name, f"--{name}")] if one else []
                elif one is not None:
                    found.append((name, f"--{name}={_text(one)}"))
        return found

    def arguments(self, given: Sequence[str] = ()) -> list[str]:
        """The template's options with those ``given`` on the command line over them."""
        named = _named(given)
        overridden = {name for name, _ in named}
        kept = (
            argument
            for name, argument in self.named_arguments()
            if name not in overridden or isinstance(self.beam.get(name), list)
        )
        return [*kept, *(argument for _, argument in named)]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """``--a=1`` and ``--a 1`` alike as ``("a", "--a=1")``."""
    rest, named = list(arguments), []
    while rest:
        argument = rest.pop(0)
        name, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and not equals and rest and not rest[0].startswith("--"):
            argument = f"{argument}={rest.pop(0)}"
        named.append((name.replace("-", "_"), argument))
    return named


# ------------------------------------------------------------------------------------------------------------- reading


def list_templates() -> list[str]:
    """The names of the templates that come with the project."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _SHIPPED.iterdir() if path.is_file() and path.name[-5:] == ".yaml"
    )


def load_template(name: str) -> Template:
    """Read a template: a file's path, or the name of a shipped one. Raises TemplateRefused."""
    try:
        if Path(name).is_file():
            text = Path(name).read_text(encoding="utf-8")
        elif (short := name.removesuffix(".yaml")) in list_templates():
            text = _SHIPPED.joinpath(f"{short}.yaml").read_text(encoding="utf-8")
        else:
            raise TemplateError(f"{name}: no such template: give a file, or one of {', '.join(list_templates())}")
        content, lines = yaml.safe_load(text), _number_lines(text)
    except OSError as error:
        raise TemplateError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TemplateError(f"{name}: is not text in UTF-8: save it as such") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise TemplateError(f"{place}: is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise TemplateError(f"{name}: is not a template: it must hold job, runner and parameters")
    try:
        template = Template.model_validate(content)
    except ValidationError as error:
        found = [_describe(one) for one in error.errors(include_url=False)]
        problems: list[OptionError] = [
            TemplateError(f"{name}:{_find_line(lines, where) or 1}: {what}") for where, what in found
        ]
        raise TemplateError.join(problems) from None
    template._lines = lines
    template._file = name
    return template


def _number_lines(text: str) -> dict[str, int]:
    """The line of each key, by its path: ``parameters.shards``."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node | None, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[f"{path}{key.value}"] = key.start_mark.line + 1
                visit(value, f"{path}{key.value}.")

    visit(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return lines


def _find_line(lines: Mapping[str, int], path: str) -> int | None:
    """The line of a key, or of the nearest section around it; None where there is neither."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path)


def _describe(problem: Mapping[str, Any]) -> tuple[str, str]:
    """The key that pydantic found at fault, and the line that says what to do."""
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "missing":
        return where, f"{where} is missing: add it"
    if problem["type"] == "extra_forbidden":
        keys = Kubernetes.model_fields if len(problem["loc"]) > 1 else Template.model_fields
        return where, f"{where}: no such key: use {', '.join(keys)}"
    return where, f"{where}: {problem['msg'].removeprefix('Value error, ')}"


# ------------------------------------------------------------------------------------------------------------ checking


@dataclass(frozen=True)
class Findings:
    """What is wrong with a template (lines that name parameter and fix), what it leaves open (required options), and
    which secrets do not resolve here, which is no fault where the workers run elsewhere.
    """

    problems: tuple[str, ...]
    open: tuple[str, ...]
    unresolved: tuple[str, ...]


def check_template(template: Template, given: Sequence[str] = ()) -> Findings:
    """Check every value, but for those that ``given`` replaces. Reads the secrets that the template refers to, and
    nothing else.
    """
    overridden = {name for name, _ in _named(given)}
    wrong = dict(_misplaced_or_mistyped(template))
    problems = [problem for name, problem in wrong.items() if name not in overridden]
    reported = {*wrong}
    named = [(name, argument) for name, argument in template.named_arguments() if name not in overridden | reported]
    open_ = _open(template, overridden)
    stand_ins = {name: _STAND_INS[name] for name in open_}
    stand_ins |= {name: _MENDS[name] for name in overridden & set(_MENDS)}
    settings = None
    while settings is None:
        arguments = [*(argument for _, argument in named), *(f"--{name}={value}" for name, value in stand_ins.items())]
        try:
            settings, beam = parse_arguments(template.job, arguments)
            if is_on_flink(beam):
                set_flink_options(beam, template.job)
        except OptionError as refused:
            settings = None
            before = (len(named), len(stand_ins))
            for problem in refused.problems:
                name = problem.field or ""
                if name not in reported:
                    problems.append(_line(name, str(problem).removeprefix("--")))
                reported.add(name)
                named = [(other, argument) for other, argument in named if other != name]
                stand_ins |= {name: _MENDS[name]} if name in _MENDS else {}
            if before == (len(named), len(stand_ins)):
                break
    if template.kubernetes is not None and template.runner == "FlinkRunner" and settings is not None:
        try:
            secrets = [ref for _, ref in _secrets(settings)]
            flink_deployment(template.kubernetes, template.job, 1, settings.monitoring.metrics_port, secrets)
        except ManifestError as refused:
            problems.append(str(refused))
    unresolved = [*_unresolved(settings)] if settings is not None else []
    return Findings(tuple(problems), tuple(open_), tuple(unresolved))


def _line(name: str, refusal: str) -> str:
    if name in option_fields():
        blank = "; or leave it blank in the template" if name in _STAND_INS and " is missing" in refusal else ""
        return f"parameters.{refusal}{blank}"
    return f"beam.{refusal}" if name else refusal


def _open(template: Template, overridden: Iterable[str] = ()) -> list[str]:
    """What the job needs and the template leaves to the launch: a blank, or missing where a variable may be set."""
    return [
        name
        for name in required_options(template.job)
        if name not in overridden
        and template.parameters.get(name) is None
        and (name in template.parameters or name in ENVIRONMENT)
    ]


def _misplaced_or_mistyped(template: Template) -> Iterable[tuple[str, str]]:
    for name, value in template.parameters.items():
        if OLD_NAMES.get(name, name) not in option_fields() or name == "job":
            yield name, f"parameters.{name}: no such parameter: {_mend(name)}"
        elif value is not None and not (kind := _kind(name)).takes(value):
            yield name, f"parameters.{name}: must be {kind.wanted}, not {_kind_of(value)}"
    for name, value in template.beam.items():
        if name in option_fields():
            yield name, f"beam.{name}: is no option of Beam's: move it under parameters"
        elif name == "runner":
            yield name, "beam.runner: stands beside job: move it there"
        elif value is None:
            yield name, f"beam.{name}: is blank: give it a value or leave it out"


def _mend(name: str) -> str:
    if name in PipelineOptions([]).get_all_options():
        return "it is Beam's, move it under beam"
    close = difflib.get_close_matches(name, option_fields(), n=1)
    return f"did you mean {close[0]}?" if close else "`itel-cabinet run --help` lists them"


@dataclass(frozen=True)
class _Kind:
    takes: Callable[[object], bool]
    wanted: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TEXT = _Kind(lambda value: isinstance(value, str), "text (in quotes where YAML sees something else)")
_KINDS: dict[object, _Kind] = {
    bool: _Kind(lambda value: isinstance(value, bool), "true or false"),
    int: _Kind(lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number, without quotes"),
    float: _Kind(_is_number, "a number, without quotes"),
    dict[str, str]: _Kind(lambda value: isinstance(value, dict), "a mapping, such as {security.protocol: SSL}"),
    tuple[str, ...]: _Kind(
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of texts, such as [year, month]",
    ),
}


def _kind(name: str) -> _Kind:
    return _KINDS.get(option_fields()[OLD_NAMES.get(name, name)].annotation, _TEXT)


def _kind_of(value: object) -> str:
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "text"), (list, "a list"), (dict, "a mapping"))
    return next((kind for types, kind in kinds if isinstance(value, types)), f"a {type(value).__name__}")


def _secrets(settings: Settings) -> list[tuple[str, SecretRef]]:
    """Every reference to a secret that the job uses, with its option."""
    auths = {"claimx_auth": settings.claimx.auth}
    headers: list[tuple[str, str]] = []
    if settings.job.calls_itel and settings.itel.folder is None:
        auths["itel_auth"] = settings.itel.auth
        headers += (("contract_vars", reference) for _, reference in settings.itel_connection().secret_headers)
    if settings.job.calls_itel and settings.itel.shadow_url:
        second = settings.shadow_settings().connection
        auths["itel_shadow_auth"] = second.auth
        headers += (("itel_shadow_vars", reference) for _, reference in second.secret_headers)
    found = [(name, ref) for name, auth in auths.items() for ref in Auth.parse(auth).refs]
    found += [(name, SecretRef.parse(reference)) for name, reference in headers]
    for value in settings.source.kafka_config.values():
        # Nothing else in librdkafka's settings begins like this, and its secrets are refused unless they do.
        if value.startswith(("env:", "file:")):
            found.append(("kafka_config", SecretRef.parse(value)))
    return found


def _unresolved(settings: Settings) -> Iterable[str]:
    for name, ref in _secrets(settings):
        try:
            ref.resolve()
        except UnresolvedSecretError as error:
            yield f"parameters.{name}: {error}"


# ----------------------------------------------------------------------------------------------------------- launching


def with_template(arguments: Sequence[str]) -> list[str]:
    """``JOB --template=FILE [options]`` with the template's options in the place of ``--template``; without one, as it
    is. Raises TemplateRefused.
    """
    job, named = arguments[0], _named(arguments[1:])
    files = [argument.partition("=")[2] for name, argument in named if name == "template"]
    if not files:
        return list(arguments)
    if len(files) > 1 or not files[0]:
        raise TemplateError("--template: give one template: --template=FILE")
    template = load_template(files[0])
    if template.job != job:
        raise TemplateError(
            f"--template: {template.file} is for the job {template.job}: itel-cabinet run {template.job}"
        )
    return [job, *_check_all(template, [argument for name, argument in named if name != "template"])]


def _check_all(template: Template, given: Sequence[str]) -> list[str]:
    """All arguments of a launch. Raises TemplateError with every problem of the template."""
    problems: list[OptionError] = [
        TemplateError(f"{template.locate(one)}: {one}") for one in check_template(template, given).problems
    ]
    if problems:
        raise TemplateError.join(problems)
    return template.arguments(given)


def _parse(template: Template, arguments: Sequence[str]) -> tuple[Settings, PipelineOptions, list[str]]:
    """Settings with stand-ins for what is left open, and the names of that. Raises OptionError."""
    open_ = _open(template, {name for name, _ in _named(arguments)})
    settings, beam = parse_arguments(template.job, [*arguments, *(f"--{name}={_STAND_INS[name]}" for name in open_)])
    if is_on_flink(beam):
        set_flink_options(beam, template.job)
    return settings, beam, open_


def render_command(template: Template, given: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The command line, quoted for a shell, that ``run --template`` amounts to, and the options it leaves open.

    Raises OptionError, as a launch would, except for what is left open.
    """
    arguments = _check_all(template, given)
    _, _, open_ = _parse(template, arguments)
    lines = [f"python -m itel_cabinet.pipeline.launch {template.job}", *map(shlex.quote, arguments)]
    return " \\\n    ".join(lines), open_


def render_manifests(
    template: Template, given: Sequence[str] = (), *, application: bool = False
) -> list[dict[str, Any]]:
    """The FlinkDeployment (a session cluster) and the Job that submits to it; or, for an ``application``, the one
    FlinkDeployment that runs the jar which the job was compiled to.

    Raises TemplateRefused for a template without Kubernetes in it, OptionError as a launch would, and also for an
    open option that no environment variable can give.
    """
    kubernetes = template.kubernetes
    if template.runner != "FlinkRunner" or kubernetes is None:
        raise TemplateError(f"{template.file}: Kubernetes needs runner: FlinkRunner and a section kubernetes")
    fixed = {**FIXED_OPTIONS, "flink_master": kubernetes.rest}
    overriding = [f"--{name}={value}" for name, value in fixed.items()]
    ours = [argument for name, argument in _named(given) if name not in fixed]
    arguments = _check_all(template, [*ours, *overriding])
    settings, beam, open_ = _parse(template, arguments)
    for name in open_:
        if name not in ENVIRONMENT:
            raise OptionError(f"--{name} is left open by {template.file}: give it")
    secrets = [ref for _, ref in _secrets(settings)]
    interval = beam.view_as(FlinkOptions).checkpointing_interval
    try:
        cluster = flink_deployment(kubernetes, template.job, interval, settings.monitoring.metrics_port, secrets)
        if application:
            parallelism = max(1, beam.view_as(FlinkRunnerOptions).parallelism)
            return [flink_application(kubernetes, cluster, parallelism)]
        variables: Mapping[str, str] = {name: ENVIRONMENT[name] for name in open_}
        return [cluster, submitting_job(kubernetes, template.job, arguments, secrets, variables)]
    except ManifestError as refused:
        raise TemplateError(f"{template.file}: {refused}") from None
