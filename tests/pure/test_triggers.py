"""Trigger rules: which block acts, and how a wrong file is refused."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import yaml

from itel_cabinet.transforms.triggers import Match, Rules, RulesError, load_default_rules, load_rules
from tests.support.cabinet_samples import TASK_IDS

ASSIGNED, COMPLETED, CANCELLED = "CUSTOM_TASK_ASSIGNED", "CUSTOM_TASK_COMPLETED", "CUSTOM_TASK_CANCELLED"


def rules(*triggers: dict[str, Any]) -> Rules:
    return load_rules(
        yaml.safe_dump({"triggers": [{"name": "N", "task_id": 1, **trigger} for trigger in triggers]}), "f"
    )


def topic(match: Match | None) -> str | None:
    return match.actions.publish_to_topic if match else None


def test_the_default_is_the_rule_of_the_cabinet_form() -> None:
    for event_type in (ASSIGNED, COMPLETED, CANCELLED):
        match = load_default_rules(TASK_IDS).match(event_type, 32513)
        assert match is not None
        assert match.trigger.name == "iTel Cabinet Repair Form Task"
        assert (match.trigger.include_task_data, match.trigger.include_project_data) == (True, True)
        assert match.actions.publish_to_topic == "itel.cabinet.task.tracking"
        assert match.actions.log is None
    assert load_default_rules(TASK_IDS).match(ASSIGNED, 32615) is None
    assert load_default_rules(TASK_IDS).topics == {"itel.cabinet.task.tracking"}


def test_the_block_of_the_event_wins_and_on_any_is_the_rest() -> None:
    found = rules({"on_any": {"publish_to_topic": "any"}, "on_completed": {"publish_to_topic": "done"}})
    assert topic(found.match(COMPLETED, 1)) == "done"
    assert topic(found.match(ASSIGNED, 1)) == "any"
    assert topic(found.match(CANCELLED, 1)) == "any"
    assert topic(found.match("custom_task_completed", 1)) == "done"


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_block_is_no_block(empty: Any) -> None:
    found = rules({"on_any": {"publish_to_topic": "any"}, "on_assigned": empty})
    assert topic(found.match(ASSIGNED, 1)) == "any"


def test_an_event_without_a_block_sets_nothing_off() -> None:
    found = rules({"on_assigned": {"publish_to_topic": "new"}})
    assert topic(found.match(ASSIGNED, 1)) == "new"
    assert found.match(COMPLETED, 1) is None
    assert found.match(ASSIGNED, 2) is None


def test_several_triggers() -> None:
    found = rules(
        {"on_any": {"publish_to_topic": "one", "log": "x"}},
        {"task_id": "2", "name": "M", "on_completed": {"publish_to_topic": "two"}, "include_task_data": False},
    )
    match = found.match(COMPLETED, 2)
    assert match is not None
    assert (match.trigger.name, match.trigger.task_id, topic(match)) == ("M", 2, "two")
    assert (match.trigger.include_task_data, match.trigger.include_project_data) == (False, False)
    assert topic(found.match(COMPLETED, 1)) == "one"
    assert found.topics == {"one", "two"}


def test_rules_reach_the_workers() -> None:
    assert pickle.loads(pickle.dumps(load_default_rules(TASK_IDS))) == load_default_rules(TASK_IDS)


def test_a_log_line() -> None:
    template = "{event_id}|{event_type}|{project_id}|{task_id}|{assignment_id}|{task_status}|{{}}"
    match = rules({"on_any": {"log": {"level": "WARNING", "message": template}}}).match(ASSIGNED, 1)
    assert match is not None
    assert match.actions.log is not None
    assert match.actions.log.level_number == logging.WARNING
    message = {
        "event_id": "{task_id}",
        "event_type": ASSIGNED,
        "project_id": "5",
        "task_id": 1,
        "assignment_id": 7,
        "task_status": "ASSIGNED",
    }
    assert match.actions.log.render(message) == f"{{task_id}}|{ASSIGNED}|5|1|7|ASSIGNED|{{}}"


def test_a_plain_log_line_is_info() -> None:
    match = rules({"on_any": {"log": "hello"}}).match(ASSIGNED, 1)
    assert match is not None
    assert match.actions.log is not None
    assert (match.actions.log.level_number, match.actions.log.message) == (logging.INFO, "hello")


PLACEHOLDERS = "{event_id}, {event_type}, {project_id}, {task_id}, {assignment_id}, {task_status}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "must be a mapping with the key triggers"),
        ("[1]", "must be a mapping with the key triggers"),
        ("{}", "triggers: missing"),
        ("triggers: []", "triggers: Tuple should have at least 1 item after validation, not 0"),
        ("triggers: [{task_id: 1, on_any: {log: x}}]", "triggers[0].name: missing"),
        (
            "triggers: [{name: a, task_id: x, on_any: {log: x}}]",
            "triggers[0].task_id: Input should be a valid integer",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {webhook: 'https://example.com'}}]",
            "triggers[0].on_any.webhook: not supported; the actions are publish_to_topic and log",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {custom: []}}]",
            "triggers[0].on_any.custom: not supported; the actions are publish_to_topic and log",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_every: {log: x}}]",
            "triggers[0].on_every: unknown key; remove it or correct its name",
        ),
        (
            "triggers: [{name: a, task_id: 1}]",
            "triggers[0]: has no action; give on_any, on_assigned or on_completed a publish_to_topic or a log",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {log: x}}, {name: b, task_id: '1', on_any: {log: y}}]",
            "several triggers for task_id 1; put their actions into one",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {publish_to_topic: 'two words'}}]",
            "triggers[0].on_any.publish_to_topic: String should match pattern '^[a-zA-Z0-9._-]{1,249}$'",
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {log: {level: loud, message: x}}}]",
            "triggers[0].on_any.log.level: Input should be 'debug', 'info', 'warning' or 'error'",
        ),
        *(
            (
                f"triggers: [{{name: a, task_id: 1, on_any: {{log: '{template}'}}}}]",
                f"triggers[0].on_any.log.message: unknown placeholder; there are {PLACEHOLDERS}, to be written just so",
            )
            for template in ("{event_id.__class__}", "{task[x]}", "{}", "{0}", "{event_id!r}", "{task_id:>99999999}")
        ),
        (
            "triggers: [{name: a, task_id: 1, on_any: {log: '{'}}]",
            "triggers[0].on_any.log.message: Single '{' encountered in format string",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, error: str) -> None:
    with pytest.raises(RulesError) as refusal:
        load_rules(text, "my-rules.yaml")
    assert str(refusal.value) == f"my-rules.yaml: {error}"


def test_other_than_yaml_is_refused_in_one_line() -> None:
    with pytest.raises(RulesError, match=r"^my-rules\.yaml: not YAML: .*line 2, column 1") as refusal:
        load_rules("a: [\n", "my-rules.yaml")
    assert "\n" not in str(refusal.value)
