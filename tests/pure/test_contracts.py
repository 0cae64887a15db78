"""Contracts: the language, what `check` refuses and where, and the two that are shipped."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from itel_cabinet.transforms.contracts import (
    SHIPPED,
    Body,
    Contract,
    ContractError,
    Refusal,
    compile_contract,
    load_shipped,
    make_contract_schema,
    shipped_text,
)
from tests.support.cabinet_samples import details, event, group, question

VARS = (("carrier_id", "C-1"), ("subscription_key", "env:ITEL_KEY"))
# The least there is: what tests of the language put their fields and columns into.
SMALL: dict[str, Any] = {
    "name": "small",
    "version": "1",
    "tasks": {"ids": [32513]},
    "form": {
        "questions": [
            {"column": "told", "type": "text", "group": "G", "question": "Text"},
            {"column": "kind", "type": "choice", "group": "G", "question": "Choice"},
            {"column": "feet", "type": "decimal", "group": "G", "question": "Feet"},
            {"column": "boxes", "type": "integer", "group": "G", "question": "Boxes"},
            {"column": "damaged", "type": "yes_no", "group": "G", "question": "Damaged?"},
        ],
        "photos": [{"key": "front", "question": "Front", "image_type": "f"}, {"key": "back", "question": "Back"}],
        "by_position": {"adjuster": {"group_id": "group-1", "answers": 7, "missing": "ignore"}},
    },
    "request": {"path": "/x", "key": {"header": "Idempotency-Key"}},
    "body": {"one": 1},
    "schema": {},
}


def small(body: Any = None, **changes: Any) -> Contract:
    content = {**SMALL, **changes, "body": {"v": body}}
    return compile_contract(yaml.safe_dump(content, allow_unicode=True), "small.yaml")


def value(body: Any, answers: dict[str, Any] | None = None, **changes: Any) -> Any:
    """What a value of the language gives for a form with these answers."""
    found = details(group("G", *(question(text, given) for text, given in (answers or {}).items())), **changes)
    contract = small(body)
    made = contract.build(found, contract.read_form(found), event())
    assert isinstance(made, Body), made
    return json.loads(made.payload)["v"]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


# ------------------------------------------------------------------------------------------------------- the language


@pytest.mark.parametrize(
    ("body", "answers", "made"),
    [
        ("plain", {}, "plain"),
        (None, {}, None),
        ([1, {"from": "form.kind"}], {"Choice": "A"}, [1, "A"]),
        ({"a": {"b": {"from": "form.kind"}}}, {"Choice": "A"}, {"a": {"b": "A"}}),
        ({"from": "form.kind"}, {}, None),
        ({"from": "form.kind", "default": "none"}, {}, "none"),
        ({"from": "form.feet", "do": ["round_half_even"]}, {"Feet": 12.5}, 12),
        ({"from": "form.feet", "do": ["round_half_even"]}, {"Feet": 13.5}, 14),
        ({"from": "form.feet", "do": ["round_half_up"]}, {"Feet": 12.5}, 13),
        ({"from": "form.feet", "do": ["round_half_up"]}, {"Feet": -12.5}, -13),
        ({"from": "form.feet", "do": ["round_half_even"]}, {"Feet": 1e300}, int(1e300)),
        ({"from": "form.feet", "do": ["round_half_even"]}, {}, None),
        ({"from": "form.told", "do": [{"pad_words": 4}], "default": ""}, {"Text": text("a b  c")}, "a b c a b c"),
        ({"from": "form.told", "do": [{"pad_words": 3}]}, {"Text": text("a b  c")}, "a b  c"),
        (
            {"from": "form.told", "do": ["digits", {"drop_prefix": {"text": "1", "at_length": 11}}]},
            {"Text": text("+1 (555) 010-0123")},
            "5550100123",
        ),
        ({"from": "form.told", "do": ["digits"]}, {"Text": text("none")}, ""),
        ({"from": "form.told", "do": ["trim", "upper", {"truncate": 3}]}, {"Text": text(" abcd ")}, "ABC"),
        ({"from": "form.told", "do": ["lower", "single_spaces"]}, {"Text": text("A \n B")}, "a b"),
        (
            {"from": "form.told", "do": [{"replace": {"pattern": "[^a-z]+", "with": "-"}}]},
            {"Text": text("a1 b")},
            "a-b",
        ),
        ({"from": "form.told", "do": [{"replace": {"text": ".", "with": r"\1"}}]}, {"Text": text("a.b")}, r"a\1b"),
        ({"from": "form.told", "do": [{"slice": {"start": 1, "end": -1}}]}, {"Text": text("abcd")}, "bc"),
        ({"from": "form.boxes", "do": ["text", {"pad_left": {"to": 4, "with": "0"}}]}, {"Boxes": 7}, "0007"),
        ({"from": "form.boxes", "do": [{"between": {"at_least": 1, "at_most": 9}}]}, {"Boxes": 0}, None),
        ({"from": "form.told", "do": ["whole_number"]}, {"Text": text(" 42 ")}, 42),
        ({"from": "form.told", "do": ["whole_number"], "default": -1}, {"Text": text("4.2")}, -1),
        ({"from": "form.told", "do": ["number"]}, {"Text": text("4.25")}, 4.25),
        ({"from": "form.kind", "do": [{"lookup": {"table": {"A": 1, "B": 2}, "else": 0}}]}, {"Choice": "B"}, 2),
        ({"from": "form.kind", "do": [{"lookup": {"table": {"A": 1}}}]}, {"Choice": "B"}, None),
        ({"from": "form.kind", "do": ["affirmative"]}, {"Choice": "Yes, some"}, True),
        (
            {"from": "form.kind", "default": "No", "match": {"yes": "yes", "else": "no"}},
            {"Choice": "YES of course"},
            "yes",
        ),
        ({"from": "form.kind", "default": "No", "match": {"yes": "yes", "else": "no"}}, {"Choice": "Most"}, "no"),
        ({"from": "form.kind", "default": "No", "match": {"yes": "yes", "else": "no"}}, {}, "No"),
        ({"from": "form.damaged", "match": {"yes": "Y", "no": "N"}}, {"Damaged?": "No, none"}, "N"),
        ({"from": "form.kind", "match": {"quartz  stone": "Q", "else": None}}, {"Choice": "Quartz Stone"}, "Q"),
        ({"from": "form.boxes", "match": {"2": "two", "else": "many"}}, {"Boxes": 2}, "two"),
        ({"concat": [{"from": "event.assignment_id"}, "-", {"from": "form.boxes"}]}, {"Boxes": 2}, "5430007-2"),
        ({"concat": [{"from": "event.assignment_id"}, "-", {"from": "form.boxes"}]}, {}, None),
        ({"join": ["a ", {"from": "form.kind"}, " ", "b"], "with": "/"}, {}, "a/b"),
        ({"join": [{"from": "form.kind"}], "default": "nobody"}, {}, "nobody"),
        ({"first": [{"from": "form.kind"}, {"from": "form.boxes"}, "none"]}, {"Boxes": 3}, 3),
        ({"when": "form.damaged", "then": 1, "else": 2}, {"Damaged?": "Yes"}, 1),
        ({"when": "form.damaged", "then": 1}, {"Damaged?": "No"}, None),
        ({"when": {"any": ["form.damaged", "form.feet"]}, "then": 1}, {"Feet": 0, "Damaged?": "No"}, None),
        ({"when": {"all": ["form.damaged", {"not": "form.feet"}]}, "then": 1}, {"Damaged?": "Yes"}, 1),
        ({"when": {"from": "form.kind", "in": ["a", "b"]}, "then": 1}, {"Choice": "B"}, 1),
        ({"when": {"from": "form.boxes", "equals": 2}, "then": 1}, {"Boxes": 2}, 1),
        ({"when": {"question": "Anything else?", "present": True}, "then": 1}, {"anything  ELSE?": "x"}, 1),
        ({"object": {"from": 1, "match": {"from": "form.kind"}}}, {"Choice": "A"}, {"from": 1, "match": "A"}),
        ({"object": {"a": {"from": "form.kind"}}, "when_all_null": None}, {}, None),
        ({"object": {"a": {"from": "form.kind"}}, "when_all_null": None}, {"Choice": "A"}, {"a": "A"}),
        ({"value": {"from": "x", "do": [1]}}, {}, {"from": "x", "do": [1]}),
        ({"from": "task.date_assigned"}, {}, "2026-01-09T09:00:00+00:00"),
        ({"from": "task.date_assigned", "do": [{"date_format": "%d/%m/%Y"}]}, {}, "09/01/2026"),
        ({"from": "customer.phone"}, {}, "5550100"),
        ({"from": "adjuster.1"}, {"Text": text("a"), "Choice": "b"}, "b"),
        ({"from": "adjuster.6"}, {"Text": text("a")}, None),
    ],
)
def test_the_language(body: Any, answers: dict[str, Any], made: Any) -> None:
    assert value(body, answers) == made


def test_photos_one_by_one_and_by_question() -> None:
    asked = {"Front": [11, 12], "Back": [13], "Other": [14]}
    item = {"k": {"from": "photo.key"}, "t": {"from": "photo.type"}, "m": {"from": "photo.media_id"}}
    assert value({"each": "photos", "where": ["type"], "item": item}, asked) == [
        {"k": "front", "t": "f", "m": 11},
        {"k": "front", "t": "f", "m": 12},
    ]
    groups = {"each": "photo_groups", "keys": ["back", "front"], "item": {"from": "group.media_ids"}}
    assert value(groups, asked) == [[13], [11, 12]]
    assert value({"each": "photos", "item": {"from": "form.kind", "default": "?"}}, asked) == ["?"] * 4


def test_a_required_field_that_is_null_is_named_with_its_place() -> None:
    contract = small({"a": {"from": "form.kind", "required": True}, "b": {"from": "form.feet", "required": True}})
    found = details(group("G", question("Feet", 1)))
    made = contract.build(found, contract.read_form(found), event())
    assert made == Refusal("incomplete", "required by iTel but missing: v.a")


@given(st.text(max_size=200), st.integers(1, 20))
@example("a", 10)
def test_padding_repeats_the_whole_until_there_are_enough_words(words: str, least: int) -> None:
    if not words.strip():
        assert value({"from": "form.told", "do": [{"pad_words": least}], "default": ""}, {"Text": text(words)}) == ""
        return
    made = value({"from": "form.told", "do": [{"pad_words": least}]}, {"Text": text(words)}).split()
    count = len(words.split())
    assert made[:count] == words.split()
    assert len(made) % count == 0
    assert len(made) >= least
    assert len(made) == count or len(made) - count < least


def test_a_function_that_fails_costs_its_form_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from itel_cabinet.transforms.contracts import conversions

    class Entry:
        value = "mine:fail"

        @staticmethod
        def load() -> Callable[[Any], Any]:
            return lambda given: {}[given]

    conversions.find_conversion.cache_clear()
    monkeypatch.setattr(conversions, "entry_points", lambda **wanted: [Entry] if wanted["name"] == "fail" else [])
    try:
        contract = small({"from": "form.kind", "do": ["fail"]}, title="with a function that fails")
    finally:
        conversions.find_conversion.cache_clear()
    found = details(group("G", question("Choice", "secret")))
    made = contract.build(found, contract.read_form(found), event())
    assert made == Refusal("invalid_payload", "the body cannot be made: KeyError")


def test_an_installed_package_adds_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    from itel_cabinet.transforms.contracts import conversions

    class Entry:
        value = "mine:shout"

        @staticmethod
        def load() -> Callable[[Any], Any]:
            return lambda given: f"{given}!"

    conversions.find_conversion.cache_clear()
    monkeypatch.setattr(conversions, "entry_points", lambda **wanted: [Entry] if wanted["name"] == "shout" else [])
    try:
        assert value({"from": "form.kind", "do": ["shout"]}, {"Choice": "A"}) == "A!"
    finally:
        conversions.find_conversion.cache_clear()


# ----------------------------------------------------------------------------------------------------------- refusals


def broken(change: Callable[[dict[str, Any]], None]) -> str:
    content = yaml.safe_load(shipped_text("vendor"))
    change(content)
    return yaml.safe_dump(content, sort_keys=False)


def put(path: str, new: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *inside, last = path.split("/")
        here: Any = content
        for part in inside:
            here = here[int(part)] if isinstance(here, list) else here[part]
        if new is ...:
            del here[last]
        elif isinstance(here, list):
            here[int(last)] = new
        else:
            here[last] = new

    return change


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown key": (put("requst", {}), "requst: unknown key"),
    "unknown key inside": (put("request/pth", "/x"), "request.pth: unknown key"),
    "no name": (put("name", ...), "name is missing"),
    "wrong name": (put("name", "No Good"), "name: must match"),
    "no version": (put("version", ...), "version is missing"),
    "no ids": (put("tasks/ids", []), "tasks.ids: List should have at least 1"),
    "an id of text": (put("tasks/ids", ["32513"]), "tasks.ids[0]: Input should be a valid integer"),
    "an id twice": (put("tasks/ids", [1, 1]), "tasks.ids: an id is given twice"),
    "no statuses": (put("tasks/statuses", []), "tasks.statuses:"),
    "gate: no test": (put("tasks/gate", {"question": "x"}), "tasks.gate: question needs one test"),
    "gate: two tests": (
        put("tasks/gate", {"question": "x", "present": True, "equals": 1}),
        "tasks.gate: question needs",
    ),
    "gate: an unknown column": (put("tasks/gate", "form.kitchen"), "tasks.gate: nothing is called 'form.kitchen'"),
    "gate: code": (put("tasks/gate", "__import__('os').system('x')"), "tasks.gate: nothing is called"),
    "gate: a number": (put("tasks/gate", 7), "tasks.gate: must be a path"),
    "gate: not true": (
        put("tasks/gate", {"question": "x", "affirmative": False}),
        "tasks.gate.affirmative: must be true",
    ),
    "a question's type": (put("form/questions/0/type", "yesno"), "form.questions[0].type: must be 'yes_no'"),
    "a question without text": (put("form/questions/0/question", ...), "question is missing"),
    "a column twice": (put("form/questions/1/column", "damage_description"), "form.questions[1].column: given twice"),
    "a column of the table": (
        put("form/questions/0/column", "raw_data"),
        "form.questions[0].column: raw_data is a column",
    ),
    "a column with SQL": (put("form/questions/0/column", "x; DROP"), "form.questions[0].column: must match"),
    "a photo key twice": (put("form/photos/1/key", "overview_photos"), "form.photos[1].key: given twice"),
    "a reaction": (put("form/unknown", "panic"), "form.unknown: must be 'warn' or 'hold'"),
    "raw_data after nothing": (put("form/raw_data_after", "nowhere"), "form.raw_data_after: no question has"),
    "a group's name": (
        put("form/by_position", {"task": {"group_id": "g", "answers": 1}}),
        "form.by_position.task: the name",
    ),
    "a million answers": (put("form/by_position/adjuster/answers", 10**6), "form.by_position.adjuster.answers:"),
    "a lookup's path": (put("lookups/project/path", "/export"), "lookups.project.path: must hold {project_id}"),
    "a lookup elsewhere": (put("lookups/project/path", "//evil/{project_id}"), "lookups.project.path: must be a path"),
    "a personal field": (put("lookups/project/personal", ["age"]), "lookups.project.personal: age is not one"),
    "a method": (put("request/method", "DELETE"), "request.method: must be 'POST'"),
    "a path without /": (put("request/path", "orders"), "request.path: must match ^/"),
    "a placeholder": (put("request/path", "/o/{claim}"), "request.path: {claim} is not known"),
    "a path upwards": (put("request/path", "/a/../../b"), "request.path: must be a path on the API's host"),
    "a header's name": (put("request/headers", {"Bad Name": "x"}), "request.headers.Bad Name"),
    "a header of two lines": (
        put("request/headers", {"X-A": "a\r\nX-B: c"}),
        "request.headers.X-A: must be visible ASCII",
    ),
    "a header of our own": (
        put("request/headers", {"Content-Length": "7"}),
        "request.headers.Content-Length: is set by",
    ),
    "a header of the trace context": (
        put("request/headers", {"TraceParent": "00-1"}),
        "request.headers.TraceParent: is set by",
    ),
    "a key in a header of ours": (
        put("request/key", {"header": "tracestate"}),
        "request.key.header: is a header that the program sets",
    ),
    "a header of no var": (put("request/headers", {"X-A": {"var": "key"}}), "request.headers.X-A.var: no var key"),
    "a secret itself": (
        put("request/headers", {"X-A": {"secret": "hunter2"}}),
        "request.headers.X-A.secret: must match",
    ),
    "a base URL with a user": (put("request/base_url", "https://me:pw@host"), "request.base_url: must be http"),
    "a key that is constant": (put("request/key/body", "claim_type"), "request.key.body: must be a field"),
    "a key that is not there": (put("request/key/body", "order_id"), "request.key.body: must be a field"),
    "no body": (put("body", {}), "body: Dictionary should have at least 1"),
    "a misspelt column": (
        put("body/claim_number", {"from": "form.damage_descripton"}),
        "did you mean form.damage_description?",
    ),
    "an unknown source": (
        put("body/claim_number", {"from": "env.HOME"}),
        "body.claim_number.from: nothing is called 'env.HOME'",
    ),
    "a dunder": (
        put("body/claim_number", {"from": "event.__class__.__mro__"}),
        "nothing is called 'event.__class__.__mro__'",
    ),
    "a secret in the body": (
        put("body/claim_number", {"from": "vars.subscription_key"}),
        "nothing is called 'vars.subscription_key'",
    ),
    "a misspelt key": (put("body/claim_number", {"from": "event.event_id", "defualt": 1}), "did you mean default?"),
    "a misspelt function": (
        put("body/claim_number", {"from": "event.event_id", "do": ["uper"]}),
        "did you mean upper?",
    ),
    "a function's type": (
        put("body/claim_number", {"from": "event.event_id", "do": ["round_half_up"]}),
        "works on integer or decimal",
    ),
    "a function without its argument": (
        put("body/claim_number", {"from": "event.event_id", "do": ["truncate"]}),
        "truncate needs",
    ),
    "a function's argument": (
        put("body/claim_number", {"from": "event.event_id", "do": [{"truncate": "x"}]}),
        "must be a whole number",
    ),
    "an endless text": (
        put("body/claim_number", {"from": "event.event_id", "do": [{"pad_words": 2 * 10**8}]}),
        "must be at most 1000",
    ),
    "a wide text": (
        put("body/claim_number", {"from": "event.event_id", "do": [{"pad_left": {"to": 10**9, "with": "x"}}]}),
        "at most 10000",
    ),
    "a slow pattern": (
        put("body/claim_number", {"from": "event.event_id", "do": [{"replace": {"pattern": "(a+)+$", "with": ""}}]}),
        "one class of characters",
    ),
    "a wrong date": (
        put("body/loss_date", {"from": "task.date_assigned", "do": [{"date_format": "%Q"}]}),
        "directive that is not known",
    ),
    "each of nothing": (put("body/images", {"each": "pictures", "item": 1}), "body.images.each: no such list"),
    "each of a list": (put("body/images/each", []), "body.images.each: no such list"),
    "each without item": (put("body/images", {"each": "photos"}), "body.images: each needs an item"),
    "where an unknown field": (put("body/images/where", ["size"]), "body.images.where[0]: no such field"),
    "a photo outside": (put("body/claim_number", {"from": "photo.url"}), "nothing is called 'photo.url'"),
    "an empty join": (put("body/insured/name", {"join": []}), "body.insured.name.join: must be a list"),
    "an object in a join": (put("body/insured/name", {"join": [{"a": 1}]}), "is an object, which is no part of a text"),
    "when without then": (put("body/claim_number", {"when": "form.damage_description"}), "when needs a then"),
    "a field the schema misses": (put("body/more", 1), "body.more: is not in the schema"),
    "a field the schema wants": (put("body/claim_type", ...), "body: lacks claim_type, which the schema requires"),
    "a field inside that it wants": (put("body/adjuster/email", ...), "body.adjuster: lacks email"),
    "a type the schema refuses": (
        put("body/cabinet_repair_specs/upper_cabinets_damaged", {"from": "form.damage_description"}),
        "gives string, and the schema wants boolean",
    ),
    "a constant that breaks it": (put("body/service_level", 7), "body.service_level: the constant breaks the schema"),
    "a schema of nothing": (put("schema", {"type": "objekt"}), "schema:"),
    "a schema from afar": (
        put("schema/properties/insured", {"$ref": "https://evil.example/s"}),
        "must lead within the schema",
    ),
    "a schema to nowhere": (
        put("schema/properties/insured", {"$ref": "#/definitions/No"}),
        "#/definitions/No is not in the schema",
    ),
    "a schema in a circle": (
        put("schema/definitions", {"A": {"$ref": "#/definitions/B"}, "B": {"$ref": "#/definitions/A"}}),
        "leads back to itself",
    ),
    "a status of no status": (
        put("answers/rules/0/status", "9000"),
        "answers.rules[0].status: a status is three digits",
    ),
    "a meaning": (put("answers/rules/0/means", "fine"), "answers.rules[0].means: must be 'accepted'"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_contract_is_refused_with_its_place(change: Callable[[dict[str, Any]], None], said: str) -> None:
    with pytest.raises(ContractError) as refusal:
        compile_contract(broken(change), "mine.yaml")
    lines = str(refusal.value).splitlines()
    assert any(said in line for line in lines), lines
    assert all(line.startswith("mine.yaml: line ") for line in lines)


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file() -> None:
    content = broken(
        lambda found: [BROKEN[name][0](found) for name in ("an unknown source", "a misspelt function")] and None
    )
    content = content.replace("service_level: one_hour", "service_level: 7")
    with pytest.raises(ContractError) as refusal:
        compile_contract(content.replace("  path: /cabinet-repair-orv", "  path: /{no}"), "mine.yaml")
    assert len(refusal.value.problems) == 1  # what pydantic reports comes first: the rest cannot be compiled
    with pytest.raises(ContractError) as refusal:
        compile_contract(content.replace("loss_type: null", "loss_type: {from: nowhere}"), "mine.yaml")
    assert [problem.place for problem in refusal.value.problems] == ["body.claim_number.do[0]", "body.loss_type.from"]
    assert [problem.line for problem in refusal.value.problems] == sorted(
        problem.line for problem in refusal.value.problems
    )


NOT_YAML = {
    "empty": ("", "line 1: the file is empty"),
    "a list": ("- 1\n", "line 1: must be a mapping"),
    "no YAML": ("a: [\n", "line 2: not YAML"),
    "a tab": ("a:\n\tb: 1\n", "not YAML"),
    "twice": ("name: a\nname: b\n", "line 2: name: given twice"),
    "a tag": ("name: !!python/object/apply:os.system ['x']\n", "the tag python/object/apply:os.system is not read"),
    "a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n", "line 3: b: << (a merge) is not read"),
    "a circle": ("a: &a [*a]\n", "an alias that contains itself"),
    "a bomb": ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
    ), "more than 50000 values"),
    "deep": ("a: " + "[" * 100 + "]" * 100 + "\n", "nested over 60 levels"),
    "huge": ("a: " + "x" * 1_000_001, "longer than 1000000 characters"),
    "infinite": ("name: 1e999\n", "a number too large"),
    "a control character": ("a: \x07\n", "not YAML"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_no_such_file_is_refused(content: str, said: str) -> None:
    with pytest.raises(ContractError) as refusal:
        compile_contract(content, "mine.yaml")
    assert any(said in line for line in str(refusal.value).splitlines()), str(refusal.value)


STRAIGHT = yaml.safe_load(shipped_text("vendor"))
# libyaml's, where it is there: a fifth of the time.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@settings(derandomize=True, max_examples=200)
@given(st.data())
def test_any_file_that_is_bent_is_refused_or_compiles(data: st.DataObject) -> None:
    content = copy.deepcopy(STRAIGHT)
    other = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({})
    for _ in range(data.draw(st.integers(1, 3))):
        here: Any = content
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(here[key], dict | list) or data.draw(st.integers(0, 4)) == 0:
                here[key] = data.draw(other)
                break
            here = here[key]
    try:
        contract = compile_contract(yaml.dump(content, Dumper=DUMPER), "bent.yaml")
    except ContractError:
        return
    found = details(group("G", question("Kitchen cabinet damage present", "Yes")))
    assert isinstance(contract.build(found, contract.read_form(found), event()), Body | Refusal)


def test_yes_and_no_are_texts() -> None:
    content = shipped_text("vendor").replace('{"yes": "yes", else: "no"}', "{yes: yes, else: no}")
    assert compile_contract(content, "mine.yaml").file.body == load_shipped("vendor").file.body


@pytest.mark.parametrize(
    ("given_vars", "said"),
    [
        ({}, ["carrier_id is not given: the carrier's id at iTel", "subscription_key is not given"]),
        ({"carrier_id": "C", "subscription_key": "hunter2"}, ["subscription_key is a secret: give it as env:NAME"]),
        ({**dict(VARS), "carier": "x"}, ["carier is given, and the contract has no such var"]),
    ],
)
def test_vars_are_checked_by_name(given_vars: dict[str, str], said: list[str]) -> None:
    with pytest.raises(ContractError) as refusal:
        compile_contract(shipped_text("vendor"), "vendor", tuple(given_vars.items()), True)
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))
    assert "hunter2" not in str(refusal.value)


# -------------------------------------------------------------------------------------------------- the shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_contract_is_plain_yaml_that_can_be_changed_and_read_again(name: str) -> None:
    content = yaml.safe_load(shipped_text(name))
    assert {"form", "body", "request"} <= content.keys()
    assert {"method", "path", "headers"} <= content["request"].keys()
    again = compile_contract(yaml.safe_dump(content), "again.yaml")
    assert again.file == load_shipped(name).file
    jsonschema.validate(content, make_contract_schema())


@pytest.mark.parametrize(
    "name", ["unknown key", "a question's type", "a misspelt key", "a method", "each without item"]
)
def test_the_schema_for_editors_refuses_too(name: str) -> None:
    content = yaml.safe_load(broken(BROKEN[name][0]))
    assert not jsonschema.Draft202012Validator(make_contract_schema()).is_valid(content)


def test_a_contract_reaches_the_workers() -> None:
    contract = compile_contract(shipped_text("vendor"), "vendor", VARS, True)
    again = pickle.loads(pickle.dumps(contract))
    assert (again.sha256, again.vars, again.label) == (contract.sha256, contract.vars, "vendor 1")
    assert len(pickle.dumps(contract)) < 50_000


# ---------------------------------------------------------------------------------------------------------- the vendor

VENDOR = compile_contract(shipped_text("vendor"), "vendor", VARS, True)
PROJECT = {
    "data": {
        "project": {
            "projectNumber": "CLM-77",
            "customerInformation": {
                "firstName": " Pat",
                "lastName": "Roe ",
                "address": {
                    "street1": "7 Elm St",
                    "city": "Eugene",
                    "stateProvince": "OR",
                    "zipPostcode": 97403,
                    "country": "US",
                },
            },
        }
    }
}
ADJUSTER = {
    **group("Adjuster", *(question(f"Q{n}", text(given)) for n, given in enumerate(
        ("Acme", "Kim", "Lee", "+1 (555) 010-0123", "kim@example.com")
    ))),
    "groupId": "group-309019430",
}  # fmt: skip
GATE = group("Anywhere", question(" kitchen cabinet DAMAGE present ", "Yes, on two walls"))


def order(*groups: Any, project: Any = PROJECT, links: dict[int, str] | None = None, **changes: Any) -> dict[str, Any]:
    found = details(GATE, *groups, **changes)
    form = VENDOR.read_form(found)
    assert VENDOR.passes(found, form, event())
    made = VENDOR.build(found, form, event(), project, links or {})
    assert isinstance(made, Body), made
    sent: dict[str, Any] = json.loads(made.payload)
    jsonschema.validate(sent, VENDOR.file.body_schema)
    return sent


def test_the_vendor_s_order() -> None:
    links = {11: "https://b.s3.amazonaws.com/11?X-Amz-Expires=900", 13: "https://b.s3.amazonaws.com/13"}
    sent = order(
        group(
            "Linear Feet Capture",
            question("Countertops (linear feet)", 9.4),
            question("Lower Cabinets (linear feet)", 12.5),
            question("Upper Cabinets (linear feet)", 13.5),
        ),
        group("Cabinet Types Damaged", question("Lower Cabinets Damaged?", "Yes, all")),
        group(
            "Lower Cabinets",
            question("Enter Number of Damaged Lower Boxes", 3),
            question("Are All The Face Frames, Doors, And Drawers Available?", "Yes, all of them"),
        ),
        group("Upper Cabinets", question("Are All The Face Frames, Doors, And Drawers Available?", "Most of them")),
        group("Lower Cabinet Counter Type", question("Select Lower Cabinet Counter Type", "Quartz")),
        group("Damage Description", question("Enter Damaged Description", text("Leak under the sink"))),
        group(
            "Photos",
            question("Upload Overview Photo(s)", [11, 12]),
            question("Captured Island Cabinet End Panels", [13]),
            question("Receipt", [14]),
        ),
        ADJUSTER,
        links=links,
    )
    assert {name: part for name, part in sent.items() if name not in ("cabinet_repair_specs",)} == {
        "integration_test_id": f"5430007-{'9f2c' * 16}",
        "claim_number": "CLM-77",
        "external_claim_id": "5400001",
        "cat_code": "",
        "claim_type": "Other",
        "loss_type": None,
        "service_level": "one_hour",
        "loss_date": "2026-01-09T09:00:00+00:00",
        "insured": {
            "name": "Pat Roe",
            "street_number": "",
            "street_name": "7 Elm St",
            "city": "Eugene",
            "state": "OR",
            "zip_code": "97403",
            "country": "US",
        },
        "adjuster": {
            "carrier_id": "C-1",
            "adjuster_id": "Acme",
            "first_name": "Kim",
            "last_name": "Lee",
            "phone": "5550100123",
            "email": "kim@example.com",
        },
        "images": [
            {"image_type": "overview", "url": links[11]},
            {"image_type": "isl_end", "url": links[13]},
        ],
        "opinion_replacement_value_specs": {
            "upper_cabinets_linear_ft": 14,
            "lower_cabinets_linear_ft": 12,
            "full_height_cabinets_linear_ft": None,
            "island_cabinets_linear_ft": None,
            "counter_top_linear_ft": 9,
        },
    }
    specs = sent["cabinet_repair_specs"]
    assert specs["damage_description"] == "Leak under the sink Leak under the sink Leak under the sink"
    assert specs["other_details_and_instructions"] == ""
    assert (specs["lower_cabinets_damaged"], specs["lower_cabinets_damaged_count"]) == (True, 3)
    assert (specs["upper_cabinets_damaged"], specs["upper_cabinets_damaged_count"]) == (False, 0)
    assert [specs[name] for name in specs if "_available" in name] == ["no", "yes", "No", "No"]
    assert (specs["lower_cabinets_counter_top_type"], specs["island_cabinets_counter_top_type"]) == ("Quartz", "")
    assert len(specs) == 28


def test_without_project_and_adjuster_the_order_has_blanks() -> None:
    sent = order(project=None)
    assert sent["claim_number"] == ""
    assert sent["insured"] == dict.fromkeys(sent["insured"], "")
    assert sent["adjuster"] == {**dict.fromkeys(sent["adjuster"], ""), "carrier_id": "C-1"}
    form = VENDOR.read_form(details(GATE))
    assert form.warnings == ("adjuster: the form has no group group-309019430",)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("Yes", True),
        ("YES, some", True),
        ("yesterday", True),  # as the vendor's system reads it: what begins with yes
        (text("true"), True),
        (text("Yes please"), True),
        ("No", False),
        (text("not yes"), False),
        ({"type": "option", "optionAnswer": None}, False),
        (None, False),
    ],
)
def test_the_gate(answer: Any, passes: bool) -> None:
    found = details(group("G", question("Kitchen cabinet damage present", answer)))
    assert VENDOR.passes(found, VENDOR.read_form(found), event()) == passes


def test_without_the_question_nothing_passes() -> None:
    found = details(group("G", question("Kitchen damage", "Yes")))
    assert not VENDOR.passes(found, VENDOR.read_form(found), event())


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ({"from": "task.status", "equals": "completed"}, True),
        ({"from": "event.task_id", "in": [1, 2]}, False),
        ({"any": ["form.boxes", {"from": "customer.email", "present": True}]}, True),
        ({"all": [{"not": "form.told"}, {"from": "adjuster.0", "present": True}]}, True),
        ({"from": "vars.team", "equals": "west"}, True),
    ],
)
def test_a_gate_over_task_event_form_and_vars(gate: Any, passes: bool) -> None:
    tasks = {"ids": [32513], "gate": gate}
    contract = small(1, tasks=tasks, vars={"team": {"default": "west"}})
    found = details(group("G", question("Choice", "A")))
    assert contract.passes(found, contract.read_form(found), event()) == passes


def test_a_gate_cannot_ask_what_is_looked_up_after_it() -> None:
    with pytest.raises(ContractError, match=r"tasks\.gate: nothing is called 'project\.number'"):
        compile_contract(broken(put("tasks/gate", "project.number")), "mine.yaml")


def test_what_breaks_the_schema_names_the_field_and_not_its_value() -> None:
    found = details(GATE, group("Upper Cabinets", question("Enter Number of Damaged Upper Boxes", -3)))
    made = VENDOR.build(found, VENDOR.read_form(found), event(), PROJECT)
    assert made == Refusal(
        "invalid_payload",
        "the body breaks the contract's schema: cabinet_repair_specs.upper_cabinets_damaged_count: breaks minimum 0",
    )


@pytest.mark.parametrize("missing", ["ignore", "warn", "hold"])
def test_a_question_that_is_gone(missing: str) -> None:
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    content["form"]["missing"] = missing
    contract = compile_contract(yaml.safe_dump(content), "mine.yaml")
    found = details(group("Linear Feet Capture", question("Countertops (linear feet)", 9)))
    form = contract.read_form(found)
    said = [warning for warning in form.warnings if "does not have its question" in warning]
    assert len(said) == (0 if missing == "ignore" else 35)
    made = contract.build(found, form, event())
    assert isinstance(made, Refusal if missing == "hold" else Body)
    assert not isinstance(made, Refusal) or made.error_class == "form_changed"


def test_an_unknown_question_can_hold_the_form() -> None:
    content = yaml.safe_load(shipped_text("cabinet_repair"))
    content["form"]["unknown"] = "hold"
    contract = compile_contract(yaml.safe_dump(content), "mine.yaml")
    found = details(group("G", question("Colour?", "Red")))
    made = contract.build(found, contract.read_form(found), event())
    assert made == Refusal(
        "form_changed", "the form is not what the contract expects: unknown question 'Colour?' in group 'G'"
    )


def test_a_changed_copy_is_followed_without_code() -> None:
    content = yaml.safe_load(shipped_text("vendor"))
    content["request"] |= {"path": "/v2/orders/{assignment_id}", "method": "PUT"}
    content["body"]["service_level"] = "one_day"
    content["form"]["questions"][0]["question"] = "What is broken?"
    contract = compile_contract(yaml.safe_dump(content), "mine.yaml")
    found = details(GATE, group("Damage Description", question("What is broken?", text("All of it"))))
    made = contract.build(found, contract.read_form(found), event())
    assert isinstance(made, Body)
    sent = json.loads(made.payload)
    assert sent["service_level"] == "one_day"
    assert sent["cabinet_repair_specs"]["damage_description"].startswith("All of it All of it")
    assert datetime.fromisoformat(sent["loss_date"]).tzinfo == UTC
