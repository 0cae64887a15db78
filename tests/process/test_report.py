"""The report: its numbers are the queries', it shows nobody's data, and a browser has nothing to complain of."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from itel_cabinet.local.services import Broker
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.operate import FailureCount, gather, render
from itel_cabinet.pipeline.operate.charts import bar_chart, column_chart
from itel_cabinet.pipeline.operate.report import Report
from itel_cabinet.pipeline.queries import Session
from itel_cabinet.pipeline.tables import LEDGER
from itel_cabinet.transforms.dead_letters import decode_dead_letter, encode_dead_letter, encode_replay_note
from itel_cabinet.transforms.records import Failure, Record
from tests.conftest import TopicFactory
from tests.support import known_history
from tests.support.chromium import Browser, started
from tests.support.known_history import HOSTILE, NOW, PERSON

FAILURES = [
    FailureCount("enrich", "unknown_assignment", 3, 1),
    FailureCount("parse", "<img src=http://127.0.0.1:1/x.png onerror=alert(1)>", 2, 0),
    FailureCount("submit", "outage", 0, 4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The known history in a folder; not to be written to."""
    root = str(tmp_path_factory.mktemp("history"))
    known_history.write(root)
    return root


@pytest.fixture(scope="module")
def known(folder: str) -> Report:
    """The report of the known history, with failures, as of its NOW."""
    with Session(known_history.specs(folder)) as session:
        return gather(session, tables_root=folder, failures=FAILURES, now=datetime.fromisoformat(NOW))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as running:
        yield running


class _Tables(HTMLParser):
    """The tables of a page by id, as rows of texts, and all text outside of the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self._rows: list[list[str]] | None = None
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open = tag
        if tag == "table":
            self._rows = self.tables[str(dict(attrs)["id"])] = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if self._rows and self._open in ("td", "th"):
            self._rows[-1][-1] += data


def tables(page: str) -> dict[str, list[list[str]]]:
    return _Tables(page).tables


def bars(page: str, chart: str) -> list[tuple[str, str, float]]:
    """Label, number and width of each bar of a chart."""
    drawn = next(svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if f'id="{chart}-title"' in svg)
    svg = ElementTree.fromstring(drawn)
    labels = [node.text or "" for node in svg.iter("text") if "label" in node.attrib["class"]]
    values = [node.text or "" for node in svg.iter("text") if "value" in node.attrib["class"]]
    widths = [float(node.attrib["width"]) for node in svg.iter("rect")]
    return list(zip(labels, values, widths, strict=True))


def _as_shown(value: Any, column: str) -> str:
    if value is None:
        return "-"
    if column.endswith("_id"):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return value[:16].replace("T", " ") if column.endswith("_at") else str(value)


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_numbers_are_the_queries(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.html"
    assert main(["report", f"--tables_root={folder}", f"--output={file}"]) == 0
    assert capsys.readouterr().out == f"{file}: 9 tasks, 2 open\n"
    page = file.read_text()
    as_of = re.findall(r'<time datetime="([^"]+)">', page)[0]

    shown = tables(page)
    assert {*shown} == {
        *("funnel", "daily", "completion-hours", "open-ages", "open-tasks", "damage", "projects", "quality"),
        *("submission-outcomes", "lacking"),
    }
    lacking = shown.pop("lacking")
    assert [row[:3] for row in lacking] == [
        ["outcome", "reason", "forms"],
        ["never_tried", "-", "1"],
        ["refused", "no_form", "1"],
        ["refused", "timeout", "1"],
    ]
    assert "<dt>forms iTel lacks</dt><dd>3</dd>" in page
    for name, rows in shown.items():
        given = [f"--param=now={as_of}"] if name.startswith("open-") else []
        assert main(["query", name, f"--tables_root={folder}", "--format=json", *given]) == 0
        asked = json.loads(capsys.readouterr().out)
        columns = [title.replace(" ", "_") for title in rows[0]]
        assert len(asked) > 1
        assert [*asked[0]] == columns or name == "open-tasks"
        assert rows[1:] == [[_as_shown(row[column], column) for column in columns] for row in asked], name

    for chart, table in [("funnel", "funnel"), ("completion", "completion-hours"), ("damage", "damage")]:
        drawn = [(label, value) for label, value, _ in bars(page, f"{chart}-chart")]
        assert drawn == [(row[0], row[1]) for row in shown[table][1:]]
    assert [bar[:2] for bar in bars(page, "outcomes-chart")][:3] == [
        ("accepted", "2"),
        ("refused: timeout", "2"),
        ("duplicate", "1"),
    ]
    assert [bar[:2] for bar in bars(page, "lacking-chart")] == [
        ("never tried", "1"),
        ("refused: no_form", "1"),
        ("refused: timeout", "1"),
    ]
    assert [value for _, value, _ in bars(page, "open-chart")] == [row[1] for row in shown["open-ages"][1:]]
    assert "--bootstrap_servers" in page
    assert "dead-letters list --count" in page


def test_bars_are_as_long_as_their_numbers(known: Report) -> None:
    widths = [(float(value), width) for _, value, width in bars(render(known), "funnel-chart")]
    assert [value for value, _ in widths] == [9, 6, 4, 1]
    for value, width in widths:
        assert width == pytest.approx(widths[0][1] * value / 9, abs=0.1)


def test_a_chart_of_many_days_ends_with_the_last_sixty() -> None:
    first = date(2026, 1, 1)
    chart = column_chart({first + timedelta(days=day): (day, 2 * day) for day in range(0, 90, 2)})
    assert chart is not None
    assert [column.day for column in chart.columns] == [first + timedelta(days=day) for day in range(29, 89)]
    assert [(column.first, column.second) for column in chart.columns[:3]] == [(0, 0), (30, 60), (0, 0)]
    assert [tick.text for tick in chart.values] == ["0", "50", "100", "150", "200"]
    assert [tick.text for tick in chart.days] == ["2026-01-30", "2026-03-30", "2026-03-01"]
    assert all(0 <= column.second_height <= chart.floor for column in chart.columns)
    assert chart.columns[-1].second_height == pytest.approx(2 * chart.columns[-1].first_height, abs=0.2)
    assert column_chart({}) is None
    assert bar_chart([("none", 0)]).bars[0].width == 0


def test_failures_are_those_of_the_error_topics(
    folder: str, tmp_path: Path, broker: Broker, topic: TopicFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = [topic(1), topic(1)]
    producer = broker.producer()
    for offset, (place, stage, reason, replayed) in enumerate(
        [(0, "parse", "not_json", False), (0, "parse", "not_json", True), (1, "submit", "outage", False)]
    ):
        record = Record("itel.cabinet.task.tracking", "Zx3kQ0aTQ2iV0hF5p2l1Ww", 0, offset, 0, None, b"pat@example.com")
        failure = Failure(record, stage, reason, "why", 0.0, 0.0)
        key, value, headers = encode_dead_letter(failure, job="tracking", group="g")
        producer.produce(topics[place], value, key, headers=list(headers))
        if replayed:
            note_key, note, note_headers = encode_replay_note(decode_dead_letter(value), 0.0)
            producer.produce(topics[place], note, note_key, headers=list(note_headers))
    assert producer.flush(30) == 0

    asked = [
        f"--bootstrap_servers={broker.bootstrap_servers}",
        f"--dead_letter_topic={topics[0]}",
        f"--itel_errors_topic={topics[1]}",
    ]
    file = tmp_path / "report.html"
    assert main(["report", f"--tables_root={folder}", f"--output={file}", *asked]) == 0
    page = file.read_text()
    assert tables(page)["failures"] == [
        ["step", "reason", "open", "replayed"],
        ["parse", "not_json", "1", "1"],
        ["submit", "outage", "1", "0"],
    ]
    assert [bar[:2] for bar in bars(page, "failures-chart")] == [("parse: not_json", "1"), ("submit: outage", "1")]
    assert "pat@example.com" not in page
    capsys.readouterr()
    assert main(["dead-letters", "list", "--count", "--json", *asked]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"stage": "parse", "error_class": "not_json", "open": 1, "replayed": 1},
        {"stage": "submit", "error_class": "outage", "open": 1, "replayed": 0},
    ]


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        (None, "Not asked for"),
        ([], "There is none on the error topics."),
        ([FailureCount("submit", "outage", 0, 4)], "Dead letters that have not been replayed"),
    ],
)
def test_what_is_told_of_failures(known: Report, failures: list[FailureCount] | None, says: str) -> None:
    page = render(replace(known, failures=failures))
    assert says in page
    assert ("failures" in tables(page)) is bool(failures)
    assert "failures-chart" not in page
    assert ("<dt>failures open</dt><dd>0</dd>" in page) is (failures is not None)


def test_empty_tables_make_a_page(tmp_path: Path, browser: Browser) -> None:
    assert main(["tables", "create", f"--tables_root={tmp_path}"]) == 0
    file = tmp_path / "report.html"
    assert main(["report", f"--tables_root={tmp_path}", f"--output={file}"]) == 0
    page = file.read_text()
    assert "There is no event yet." in page
    assert "The ledger has none yet." in page
    assert "None: iTel has every completed form" in page
    assert [bar[1:] for bar in bars(page, "funnel-chart")] == [("0", 0.0)] * 4
    assert browser.open(file).complaints == []


def test_without_a_ledger_the_page_says_so(tmp_path: Path) -> None:
    known_history.write(str(tmp_path))
    shutil.rmtree(tmp_path / LEDGER)
    file = tmp_path / "report.html"
    assert main(["report", f"--tables_root={tmp_path}", f"--output={file}"]) == 0
    page = file.read_text()
    assert "There is no ledger of submissions here" in page
    assert "forms iTel lacks" not in page


# ------------------------------------------------------------------------------------------------------------ strangers


def test_what_the_tables_hold_is_only_text(known: Report) -> None:
    page = render(known)
    assert HOSTILE not in page
    assert tables(page)["projects"][3][0] == HOSTILE
    assert tables(page)["failures"][2][1] == FAILURES[1].error_class
    assert not {"script", "img", "link", "iframe", "object", "a"} & _Tables(page).tags
    assert " on" not in "".join(re.findall(r"<[^>]+>", page)).replace("<section>", "")
    assert " style=" not in "".join(re.findall(r"<[^>]+>", page))


def test_nobody_is_in_it(known: Report) -> None:
    page = render(known)
    for part in PERSON:
        assert part.lower() not in page.lower()
    assert "@" not in page.replace("@media", "")


def test_a_browser_has_nothing_to_complain_of(known: Report, tmp_path: Path, browser: Browser) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(known), encoding="utf-8")
    for dark in (False, True):
        page = browser.open(file, dark=dark)
        assert page.requests == []
        assert page.complaints == []
        assert f"{HOSTILE}\t1" in page.text, "shown as it is"
        assert "tasks completed\n6" in page.text
    assert page.picture.startswith(b"\x89PNG")


_ON_A_PHONE = """({
    sideways: document.documentElement.scrollWidth - innerWidth,
    smallest: Math.min(...[...document.querySelectorAll("svg text")].map(
        text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)),
    outside: [...document.querySelectorAll("svg text")].filter(text => {
        const [own, chart] = [text, text.closest("svg")].map(one => one.getBoundingClientRect());
        return own.left < chart.left - 1 || own.right > chart.right + 1;
    }).map(text => text.textContent),
    broken: [...document.querySelectorAll("td.whole")].filter(cell => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(line => Math.round(line.top))).size > 1;
    }).map(cell => cell.textContent),
})"""


def test_it_can_be_read_on_a_phone(known: Report, tmp_path: Path, browser: Browser) -> None:
    """The text of charts is large enough and inside of them, ids stand on one line, the page does not move sideways."""
    file = tmp_path / "report.html"
    file.write_text(render(known), encoding="utf-8")
    shown = browser.open(file, width=390, height=844, ask=_ON_A_PHONE).answer
    assert shown["smallest"] >= 11
    assert {**shown, "smallest": None} == {"sideways": 0, "smallest": None, "outside": [], "broken": []}


def test_a_browser_would_complain(known: Report, tmp_path: Path, browser: Browser) -> None:
    """That nothing is found above means something: here the page has a script, a picture and a style of its own."""
    file = tmp_path / "report.html"
    bad = '<script>console.error("x")</script><img src="http://127.0.0.1:1/x.png"><p style="color: red">x</p></body>'
    page = render(known).replace("</body>", bad)
    file.write_text(page, encoding="utf-8")
    guarded = browser.open(file)
    assert len(guarded.complaints) == 3
    assert all("Content Security Policy" in complaint for complaint in guarded.complaints)
    assert guarded.requests == ["http://127.0.0.1:1/x.png"]
    file.write_text(re.sub(r"<meta http-equiv[^>]+>", "", page), encoding="utf-8")
    unguarded = browser.open(file)
    assert unguarded.requests == ["http://127.0.0.1:1/x.png"]
    assert any('"x"' in complaint for complaint in unguarded.complaints)


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        status = main(["report", *arguments])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return status, printed.err.removeprefix("itel-cabinet: ").rstrip("\n")

    return run


def test_a_page_is_replaced_whole_or_not_at_all(
    folder: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    file = tmp_path / "report.html"
    file.write_text("the one before")
    assert refused(f"--tables_root={tmp_path}", f"--output={file}")[0] == 1
    assert file.read_text() == "the one before"
    assert main(["report", f"--tables_root={folder}", f"--output={file}"]) == 0
    assert file.read_text().endswith("</html>")
    assert [*tmp_path.iterdir()] == [file]


def test_where_a_page_cannot_be_written(folder: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    nowhere = tmp_path / "none" / "report.html"
    assert refused(f"--tables_root={folder}", f"--output={nowhere}") == (
        1,
        f"--output: {nowhere} cannot be written: No such file or directory",
    )
    assert refused(f"--tables_root={folder}", f"--output={tmp_path}") == (
        1,
        f"--output: {tmp_path} cannot be written: Is a directory",
    )
    assert [*tmp_path.iterdir()] == []
    assert [*tmp_path.parent.glob(f".{tmp_path.name}*")] == []


def test_what_cannot_be_asked(folder: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]) -> None:
    file = tmp_path / "report.html"
    status, line = refused(f"--tables_root={tmp_path}", f"--output={file}")
    assert status == 1
    assert line.startswith(f"--tables_root: there is no table {tmp_path}/")
    status, line = refused(f"--tables_root={folder}", f"--output={file}", "--bootstrap_servers=127.0.0.1:1")
    assert status == 1
    assert line.startswith("--bootstrap_servers: no broker answers at 127.0.0.1:1")
    assert not file.exists()


def test_the_page_is_the_same_every_time(known: Report) -> None:
    assert render(known) == render(known)
    assert known.made_at == datetime(2026, 2, 10, tzinfo=UTC)
