"""Which task events are acted on: trigger rules, read from a YAML file and validated in full before anything runs.

Rules are immutable, can be pickled, and are safe to share between threads.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from itel_cabinet.transforms.enrichment import KnownTask
from itel_cabinet.transforms.events import Id, dump_json, make_tracking_headers, make_tracking_message
from itel_cabinet.transforms.records import Record, Skip

__all__ = ["Match", "Publication", "Rules", "RulesError", "Trigger", "apply_rules", "load_default_rules", "load_rules"]

_LOGGER = logging.getLogger(__name__)
_PLACEHOLDERS = ("event_id", "event_type", "project_id", "task_id", "assignment_id", "task_status")
_UNSUPPORTED_ACTIONS = {"webhook", "custom"}


class RulesError(ValueError):
    """A rules file that cannot be used: one line that names the file, the key and what to do."""


def _plain_placeholders(template: str) -> str:
    # Only bare known names are let through, so formatting can neither fail later nor reach into an object.
    for _, name, spec, conversion in Formatter().parse(template):
        if name is not None and (name not in _PLACEHOLDERS or spec or conversion):
            known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
            raise ValueError(f"unknown placeholder; there are {known}, to be written just so")
    return template


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogAction(_Strict):
    """A line for the job's log, with placeholders in it for what the tracking message says."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lambda level: level.lower() if isinstance(level, str) else level),
    ] = "info"
    message: Annotated[str, Field(min_length=1), AfterValidator(_plain_placeholders)]

    @property
    def level_number(self) -> int:
        """The level as the logging module counts it."""
        return logging.getLevelNamesMapping()[self.level.upper()]

    def render(self, message: Mapping[str, Any]) -> str:
        """The line for a tracking message (see events.make_tracking_message)."""
        return self.message.format_map(message)


class Actions(_Strict):
    """What to do with a matching event. An empty block counts as absent."""

    publish_to_topic: Annotated[str | None, StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,249}$")] = None
    log: Annotated[LogAction | None, BeforeValidator(lambda log: {"message": log} if isinstance(log, str) else log)] = (
        None
    )

    def __bool__(self) -> bool:
        return bool(self.publish_to_topic or self.log)


class Trigger(_Strict):
    """The actions for the events of one task template."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    task_id: Id
    on_any: Actions | None = None
    on_assigned: Actions | None = None
    on_completed: Actions | None = None
    include_task_data: bool = True
    include_project_data: bool = False

    @model_validator(mode="after")
    def _acts(self) -> Trigger:
        if not (self.on_any or self.on_assigned or self.on_completed):
            raise ValueError("has no action; give on_any, on_assigned or on_completed a publish_to_topic or a log")
        return self

    def actions(self, event_type: str) -> Actions | None:
        """The block for an event type: its own where there is one with an action in it, else ``on_any``."""
        own = {"CUSTOM_TASK_ASSIGNED": self.on_assigned, "CUSTOM_TASK_COMPLETED": self.on_completed}
        return own.get(event_type.upper()) or self.on_any or None


@dataclass(frozen=True, slots=True)
class Match:
    """A trigger that an event has set off, with the actions to take."""

    trigger: Trigger
    actions: Actions


class Rules(_Strict):
    """The triggers of one file, at most one for a task template."""

    triggers: Annotated[tuple[Trigger, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_trigger_a_task(self) -> Rules:
        repeated = [task for task, times in Counter(trigger.task_id for trigger in self.triggers).items() if times > 1]
        if repeated:
            raise ValueError(f"several triggers for task_id {repeated[0]}; put their actions into one")
        return self

    @property
    def topics(self) -> frozenset[str]:
        """The topics that the rules publish to."""
        blocks = [block for t in self.triggers for block in (t.on_any, t.on_assigned, t.on_completed) if block]
        return frozenset(block.publish_to_topic for block in blocks if block.publish_to_topic)

    @property
    def task_ids(self) -> frozenset[int]:
        """The task templates that there is a trigger for."""
        return frozenset(trigger.task_id for trigger in self.triggers)

    def match(self, event_type: str, task_id: int) -> Match | None:
        """What to do with an event of this type and task template; None where no trigger has an action for it."""
        for trigger in self.triggers:
            if trigger.task_id == task_id:
                actions = trigger.actions(event_type)
                return Match(trigger, actions) if actions else None
        return None


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to be published and its origin. The key is the assignment id, so that its events keep their order."""

    record: Record
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def apply_rules(
    tasks: Sequence[KnownTask], *, rules: Rules, topic: str, clock: Callable[[], float]
) -> Iterator[Publication | Skip]:
    """What the rules make of each task: a publication, or a Skip where none applies or all it asks for is a log line.

    ``topic``, if not empty, replaces the topic of every rule.
    """
    for known in tasks:
        record, event, task = known.record, known.event, known.task
        match = rules.match(event.event_type, task["task_id"])
        if match is None:
            yield Skip(record, "no_rule")
            continue
        message = make_tracking_message(
            event,
            task,
            trigger_name=match.trigger.name,
            now=datetime.fromtimestamp(clock(), UTC),
            include_task=match.trigger.include_task_data,
            include_project=match.trigger.include_project_data,
        )
        if match.actions.publish_to_topic:
            yield Publication(
                record=record,
                topic=topic or match.actions.publish_to_topic,
                key=str(message["assignment_id"]).encode(),
                value=dump_json(message).encode(),
                headers=make_tracking_headers(message, record),
            )
        else:
            yield Skip(record, "logged_only")
        if match.actions.log:
            _LOGGER.log(match.actions.log.level_number, "%s", match.actions.log.render(message))


def load_rules(text: str, source: str, task_ids: Iterable[int] = ()) -> Rules:
    """Rules from YAML. Raises RulesError.

    Args:
        text: the file's.
        source: what errors call it, such as its path.
        task_ids: the task templates of a trigger that names none.
    """
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RulesError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RulesError(f"{source}: must be a mapping with the key triggers")
    triggers = content.get("triggers")
    if isinstance(triggers, list):
        content["triggers"] = [one for given in triggers for one in _for_each_task(given, task_ids)]
    try:
        return Rules.model_validate(content)
    except ValidationError as error:
        raise RulesError(f"{source}: {_first_problem(error)}") from None


def load_default_rules(task_ids: Iterable[int]) -> Rules:
    """The rules that ship with the package: every event of these task templates goes to the tracking topic."""
    name = "triggers_default.yaml"
    return load_rules(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"), name, task_ids)


def _for_each_task(trigger: Any, task_ids: Iterable[int]) -> list[Any]:
    if not isinstance(trigger, dict) or "task_id" in trigger:
        return [trigger]
    return [{**trigger, "task_id": one} for one in sorted(task_ids)] or [trigger]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "extra_forbidden":
        if problem["loc"][-1] in _UNSUPPORTED_ACTIONS:
            return f"{where}: not supported; the actions are publish_to_topic and log"
        return f"{where}: unknown key; remove it or correct its name"
    if problem["type"] == "missing":
        return f"{where}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
