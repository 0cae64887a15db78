"""A job's command line: our options and Beam's own, told apart."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from itel_cabinet.pipeline.options import Job, OptionError, Settings, nearest

__all__ = ["FlinkOptions", "parse_arguments"]


class FlinkOptions(PipelineOptions):  # type: ignore[misc]
    """Options of the Flink job server. Python's Beam does not know them, and drops what nobody has declared."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--checkpointing_interval", type=int, help="Milliseconds between checkpoints.")
        parser.add_argument("--checkpoint_timeout_millis", type=int, help="A checkpoint that takes longer is given up.")
        parser.add_argument(
            "--finish_bundle_before_checkpointing", action="store_true", default=None, help="Always on, see tune()."
        )
        parser.add_argument("--operator_chaining", action="store_true", default=None, help="Always off, see tune().")
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
    """Our options (``--name=value`` or ``--name value``) and Beam's own, told apart. Raises OptionRefused."""
    if job not in set(Job):
        raise OptionError(f"{job}: no such job: use one of {', '.join(Job)}")
    ours: dict[str, object] = {"job": job}
    beams: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise OptionError(f"{argument}: not an option: options are written --name=value")
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if name == "job":
            raise OptionError("--job: the job's name stands before the options: itel-cabinet run JOB --name=value")
        if name not in Settings.model_fields:
            beams.append(argument)
            if not equals and rest and not rest[0].startswith("--"):
                beams.append(rest.pop(0))
            continue
        if not equals:
            if Settings.model_fields[name].annotation is bool and (not rest or rest[0].startswith("--")):
                value = "true"
            elif rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            else:
                raise OptionError(f"--{name}: a value is missing: write --{name}=VALUE")
        ours[name] = value
    _refuse_unknown(beams)
    return Settings.of(ours), PipelineOptions(beams)


class _Parser(_BeamArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        """Instead of some hundred lines of usage."""
        raise OptionError(f"{message.removeprefix('argument ')}: see Beam's own options")


def _refuse_unknown(arguments: Sequence[str]) -> None:
    parser = _Parser(allow_abbrev=False, add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    for argument in unknown:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--"):
            raise OptionError(f"--{name}: no such option{nearest(name, Settings.model_fields)}")
