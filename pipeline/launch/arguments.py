"""A job's command line: our options and Beam's own, separated."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.options import OLD_NAMES, OptionError, Settings, find_nearest, option_fields

__all__ = ["FlinkOptions", "find_old_names", "parse_arguments"]


class FlinkOptions(PipelineOptions):  # type: ignore[misc]
    """Options of the Flink job server. Beam's Python SDK drops an option that nobody has declared."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--checkpointing_interval", type=int, help="Milliseconds between checkpoints.")
        parser.add_argument("--checkpoint_timeout_millis", type=int, help="A checkpoint that takes longer is given up.")
        parser.add_argument(
            "--finish_bundle_before_checkpointing",
            action="store_true",
            default=None,
            help="Always on; the launcher decides.",
        )
        parser.add_argument(
            "--operator_chaining", action="store_true", default=None, help="Always off; the launcher decides."
        )
        parser.add_argument("--max_bundle_time_mills", type=int, help="Milliseconds until a bundle is closed.")
        parser.add_argument("--max_bundle_size", type=int, help="Elements until a bundle is closed.")
        parser.add_argument("--savepoint_path", help="Go on from this savepoint (a URI).")
        parser.add_argument("--allow_non_restored_state", action="store_true", default=None)
        parser.add_argument(
            "--pipeline_resources_detector_factory_class", help="What decides which jars the job server uploads."
        )
        parser.add_argument(
            "--wait_until_finish",
            action="store_true",
            default=None,
            help="Stay until the job has ended, not just until it runs. Ending the launcher never ends the job.",
        )


def parse_arguments(job: str, arguments: Sequence[str]) -> tuple[Settings, PipelineOptions]:
    """Our options (``--name=value`` or ``--name value``) and Beam's own, separated.

    Raises:
        OptionError: with every problem there is.
    """
    if job not in set(Job):
        raise OptionError(f"{job}: no such job: use one of {', '.join(Job)}")
    fields = option_fields()
    ours: dict[str, object] = {"job": job}
    beams: list[str] = []
    problems: list[OptionError] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            problems.append(OptionError(f"{argument}: not an option: options are written --name=value"))
            while rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        name = OLD_NAMES.get(name, name)
        has_value = bool(rest) and not rest[0].startswith("--")
        if name == "job":
            text = "the job's name stands before the options: itel-cabinet run JOB --name=value"
            problems.append(OptionError.about("job", text))
        elif name not in fields:
            beams += [argument, rest.pop(0)] if has_value and not equals else [argument]
        elif equals:
            ours[name] = value
        elif has_value:
            ours[name] = rest.pop(0)
        elif fields[name].annotation is bool:
            ours[name] = True
        else:
            problems.append(OptionError.about(name, f"a value is missing: write --{name}=VALUE"))
    problems += _find_unknown(beams)
    try:
        settings = Settings.of(ours)
    except OptionError as error:
        reported = {problem.field for problem in problems} - {None}
        problems += [problem for problem in error.problems if problem.field not in reported]
    if problems:
        raise OptionError.join(problems)
    return settings, PipelineOptions(beams)


def find_old_names(arguments: Sequence[str]) -> dict[str, str]:
    """The options among ``arguments`` that have a new name, by their old one."""
    names = (argument.removeprefix("--").partition("=")[0].replace("-", "_") for argument in arguments)
    return {name: OLD_NAMES[name] for name in names if name in OLD_NAMES}


class _Parser(_BeamArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        """Instead of some hundred lines of usage."""
        option, _, text = message.removeprefix("argument --").partition(": ")
        raise OptionError.about(option, f"{text}: see Beam's own options")


def _find_unknown(arguments: Sequence[str]) -> Iterator[OptionError]:
    """The arguments that are no options of Beam's either, or have a wrong value."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(arguments))
    except OptionError as error:
        yield error
        return
    for argument in unknown:
        if argument.startswith("--"):
            name = argument.removeprefix("--").partition("=")[0]
            yield OptionError.about(name, f"no such option{find_nearest(name)}")
