"""The photos of forms: safe names, ClaimX's metadata, what is fetched and what is not, within a deadline."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from itel_cabinet.io.delta import SuppressionList, Suppressions
from itel_cabinet.io.http import AllowedHosts, ConnectionSettings, DownloadSettings
from itel_cabinet.io.objects import Objects, ObjectStoreError, ObjectStoreSettings
from itel_cabinet.io.photos import MediaSettings, Photos, get_photos
from itel_cabinet.local.simulators import ClaimXSimulator, MediaFault, media_bytes
from itel_cabinet.transforms.enrichment import CabinetTask, Photograph
from itel_cabinet.transforms.photos import (
    Album,
    Link,
    PhotoError,
    album_folder,
    fetch_album_photos,
    fetch_photos,
    media_id_of,
    object_name,
    parse_links,
)
from itel_cabinet.transforms.rows import make_attachment_rows
from tests.support.cabinet_samples import answer, details, event, group, parse_form, question, record, tracking_message

ALBUM = Album("5400001", 32513, 5430007, (11, 12))
FOLDER = "itel_cabinet_form_attachments/5400001/32513/5430007"

# Names


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("kitchen 11.jpg", "11_kitchen_11.jpg"),
        ("", "11_11.jpg"),
        ("../../etc/passwd", "11_passwd"),
        ("/etc/passwd", "11_passwd"),
        ("..\\..\\boot.ini", "11_boot.ini"),
        ("C:\\x\\y.png", "11_y.png"),
        ("..", "11__"),
        ("a/", "11_11.jpg"),
        (".hidden", "11_hidden"),
        ("a\x00b\n\x1b[31m.jpg", "11_a_b___31m.jpg"),
        ("cuisine d\u00e9t\u00e9.jpg", "11_cuisine_d\u00e9t\u00e9.jpg"),
        ("e\u0301.jpg", "11_\u00e9.jpg"),
        ("\u202egpj.exe", "11__gpj.exe"),
        ("\ud800.jpg", "11__.jpg"),
        ("a#1?b=%2e%2e.jpg", "11_a_1_b__2e_2e.jpg"),
        ("x" * 10_000_000 + ".jpg", "11_" + "x" * 116 + ".jpg"),
        ("\u00e9" * 200 + ".jpg", "11_" + "\u00e9" * 58 + ".jpg"),
        ("a." + "x" * 300, "11_a." + "x" * 117),
        ("name.", "11_name"),
    ],
)
def test_a_file_name_is_made_safe(given_name: str, name: str) -> None:
    assert object_name(Link(11, given_name, "")) == name
    assert media_id_of(name) == 11


@given(
    st.text() | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")), st.text(), st.integers(1, 2**63 - 1)
)
def test_whatever_the_names_nothing_is_outside_its_folder(file_name: str, project: str, media_id: int) -> None:
    album = replace(ALBUM, project_id=project)
    path = PurePosixPath(album_folder(album), object_name(Link(media_id, file_name, "")))
    assert len(path.parts) == 5
    assert path.parts[0] == "itel_cabinet_form_attachments"
    assert path.parts[2:4] == ("32513", "5430007")
    for part in path.parts:
        assert part not in (".", "..")
        assert all(letter.isalnum() or letter in "._-" for letter in part)
        assert len(part.encode()) <= 145
    assert media_id_of(path.name) == media_id


@pytest.mark.parametrize("name", ["", "x", "11", "_11", "a11_x", "\u0661\u0661_x.jpg"])
def test_other_names_have_no_media_id(name: str) -> None:
    assert media_id_of(name) is None


# Metadata


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"data": x}, lambda x: {"media": x}, lambda x: x[0]])
def test_metadata_come_in_four_shapes(wrap: Callable[[list[Any]], Any]) -> None:
    item = {"mediaID": 11, "mediaType": "jpg", "mediaName": " a.jpg ", "fullDownloadLink": " https://x/y "}
    assert parse_links(json.dumps(wrap([item])).encode(), [11, 12]) == {11: Link(11, "a.jpg", "https://x/y")}


def test_odd_metadata_are_left_out() -> None:
    body = json.dumps(
        [
            {"mediaID": "11", "fullDownloadLink": "https://x/11", "mediaName": 5},
            {"mediaID": 11, "fullDownloadLink": "https://x/again"},
            {"mediaID": 12, "fullDownloadLink": " "},
            {"mediaID": 13, "fullDownloadLink": None},
            {"mediaID": True, "fullDownloadLink": "https://x/true"},
            {"mediaID": 14.0, "fullDownloadLink": "https://x/float"},
            {"mediaID": 99, "fullDownloadLink": "https://x/not-asked-for"},
            {"fullDownloadLink": "https://x/no-id"},
            None,
            [],
            "x",
        ]
    ).encode()
    assert parse_links(body, [1, 11, 12, 13, 14]) == {11: Link(11, "", "https://x/11")}


@pytest.mark.parametrize(
    ("body", "told"), [(b"", "not JSON"), (b"{", "not JSON"), (b"5", "no list"), (b'"x"', "no list")]
)
def test_what_is_no_metadata_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(PhotoError, match=told) as caught:
        parse_links(body, [11])
    assert caught.value.reason == "metadata"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([11, "11", "https://x/"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["mediaID", "mediaName", "fullDownloadLink", "data", "media"]) | st.text(), inner
        )
    ),
    max_leaves=20,
)


@given(JSON.map(lambda content: json.dumps(content).encode()) | st.binary())
@example(b"[" * 100_000)
def test_no_metadata_crash(body: bytes) -> None:
    try:
        links: Mapping[int, Link] = parse_links(body, [11])
    except PhotoError:
        links = {}
    assert links.keys() <= {11}
    assert all(isinstance(link.file_name, str) and link.url for link in links.values())


# The library, on real sockets and a folder


@pytest.fixture
def library(claimx: ClaimXSimulator, tmp_path: Path) -> Photos:
    return make_library(claimx, str(tmp_path / "media"))


def make_library(claimx: ClaimXSimulator, root: str, auth: str = "none", **changes: Any) -> Photos:
    claimx.put_task(answer(group("Photos", question("Captured Lower Cabinet Box", list(ALBUM.media_ids)))))
    downloads = DownloadSettings(AllowedHosts(("127.0.0.1",)), **{"deadline_seconds": 20.0, **changes})
    settings = ConnectionSettings("claimx", claimx.url, auth, max_retries=0)
    return get_photos(MediaSettings(settings, ObjectStoreSettings(root), downloads))


def fetched(library: Any, album: Album = ALBUM, seconds: float = 60.0, threads: int = 4) -> dict[int, Photograph]:
    with ThreadPoolExecutor(threads) as pool:
        return fetch_album_photos([album], library=library, pool=pool, deadline_seconds=seconds, clock=time.monotonic)[
            album
        ]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_photo_of_one_who_was_erased_meanwhile_is_not_kept(
    library: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erasure comes between the photo's download and its storing, when it cannot find the file."""
    place = SuppressionList(f"{tmp_path}/list", (("project", "project_id"),))
    library = replace(library, suppressions=Suppressions(place))
    put = Objects.put

    def put_after_the_erasure(*given: Any) -> None:
        Suppressions(place).add([("project", ALBUM.project_id)], datetime.now(UTC))
        put(*given)

    monkeypatch.setattr(Objects, "put", put_after_the_erasure)
    assert {photo.warning for photo in fetched(library, threads=1).values()} == {
        "erased: its assignment or project was erased meanwhile"
    }
    assert files(tmp_path / "media") == {}


def test_a_photo_is_not_kept_while_the_list_cannot_be_read(library: Photos, tmp_path: Path) -> None:
    (tmp_path / "list" / "_delta_log").mkdir(parents=True)
    (tmp_path / "list" / "_delta_log" / f"{0:020}.json").write_text("not a log")
    place = SuppressionList(f"{tmp_path}/list", (("project", "project_id"),))
    photos = fetched(replace(library, suppressions=Suppressions(place)))
    assert {photo.outcome for photo in photos.values()} == {"store"}
    assert files(tmp_path / "media") == {}


def test_photos_are_stored_once(claimx: ClaimXSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ClaimX demands credentials for the links, and its links need none."""
    claimx.token = "s3cret"
    monkeypatch.setenv("TOKEN_OF_THIS_TEST", "s3cret")
    library = make_library(claimx, str(tmp_path / "media"), auth="bearer:env:TOKEN_OF_THIS_TEST")
    names = {i: f"{FOLDER}/{i}_kitchen_{i}.jpg" for i in ALBUM.media_ids}
    paths = {i: f"{tmp_path}/media/{name}" for i, name in names.items()}
    assert fetched(library) == {i: Photograph(path, None, new=True) for i, path in paths.items()}
    assert files(tmp_path / "media") == {names[i]: media_bytes(i) for i in ALBUM.media_ids}

    calls = claimx.calls
    assert fetched(library) == {i: Photograph(path, None) for i, path in paths.items()}
    assert claimx.calls == calls, "what is stored is not asked for"


def test_a_photo_is_known_by_its_id_whatever_its_name(claimx: ClaimXSimulator, library: Photos, tmp_path: Path) -> None:
    stored = tmp_path / "media" / FOLDER / "11_an older name.png"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"as it was")
    found = fetched(library)
    assert found[11] == Photograph(str(stored), None)
    assert found[12].new
    assert stored.read_bytes() == b"as it was"
    assert not claimx.calls["/media/11"]


FAULTS = {
    "unlisted": (MediaFault(unlisted=True), "not_listed: ClaimX tells no link for it"),
    "private": (MediaFault(link="https://10.0.0.1/x"), "refused: 10.0.0.1 is not an allowed host"),
    "metadata service": (
        MediaFault(link="http://169.254.169.254/latest/meta-data/"),
        "refused: 169.254.169.254 is not an allowed host",
    ),
    "scheme": (MediaFault(link="file:///etc/passwd"), "refused: the link is not http(s)://HOST/..."),
    "redirect": (
        MediaFault(status=302, redirect="https://[::1]/x", body=b""),
        "refused: ::1 is not an allowed host",
    ),
    "type": (MediaFault(content_type="text/html"), "wrong_type: the answer is no image"),
    "huge": (MediaFault(body=b"x" * 2_000_000), "too_large: more than 1000000 bytes"),
    "always expired": (MediaFault(expired=9), "expired: status 403"),
    "error": (MediaFault(status=400), "download: status 400"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_photo_that_cannot_be_had_costs_a_warning_and_nothing_else(
    claimx: ClaimXSimulator, tmp_path: Path, fault: str
) -> None:
    library = make_library(claimx, str(tmp_path / "media"), max_bytes=1_000_000)
    claimx.media_faults[11], warning = FAULTS[fault]
    found = fetched(library)
    assert found[11] == Photograph(None, warning)
    assert found[12].new
    assert [*files(tmp_path / "media")] == [f"{FOLDER}/12_kitchen_12.jpg"]


def test_an_expired_link_is_fetched_anew_once(claimx: ClaimXSimulator, library: Photos) -> None:
    claimx.media_faults[11] = MediaFault(expired=1)
    assert fetched(library)[11].new
    assert claimx.calls["/media/11"] == 2
    assert claimx.calls["/export/project/5400001/media"] == 2


def test_a_name_from_claimx_stays_in_the_folder(claimx: ClaimXSimulator, library: Photos, tmp_path: Path) -> None:
    claimx.media_faults[11] = MediaFault(name="../../../../../evil.jpg")
    claimx.media_faults[12] = MediaFault(name="n" * 10_000_000)
    assert all(photograph.new for photograph in fetched(library).values())
    assert sorted(files(tmp_path)) == [f"media/{FOLDER}/11_evil.jpg", f"media/{FOLDER}/12_{'n' * 119}"]


@pytest.mark.parametrize(
    ("status", "warning"),
    [(404, "metadata: ClaimX answers with status 404"), (503, "metadata: ClaimX answers with status 503")],
)
def test_without_metadata_each_photo_has_a_warning(
    claimx: ClaimXSimulator, library: Photos, status: int, warning: str
) -> None:
    claimx.faults.error_status = status
    assert fetched(library) == dict.fromkeys(ALBUM.media_ids, Photograph(None, warning))


def test_a_store_that_fails_costs_a_warning(claimx: ClaimXSimulator, library: Photos, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "itel_cabinet_form_attachments").write_text("in the way")
    for photograph in fetched(library).values():
        assert photograph.path is None
        assert str(photograph.warning).startswith("store: ")
    assert not claimx.calls["/media/11"] or files(tmp_path / "media")


@pytest.mark.parametrize("key", ["../x", "a/../b", "/x", "a//b", "", "a/", "."])
def test_a_store_refuses_a_key_that_is_no_plain_path(tmp_path: Path, key: str) -> None:
    store = Objects(ObjectStoreSettings(str(tmp_path / "root")))
    with (tmp_path / "content").open("w+b") as content, pytest.raises(ObjectStoreError, match="segments"):
        store.put(key, content)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("root", ["", "/" * 3, "ftp://x/y", "az://", "memory:///x", "https://x/y", "az://c/x?sig=s"])
def test_what_is_no_root_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="must"):
        ObjectStoreSettings(root)


# The step


class Slow:
    """A library of which some photos take until they are released; counts what runs at once."""

    def __init__(self, slow: Sequence[int] = ()) -> None:
        self.slow, self.released = slow, threading.Event()
        self.running, self.most, self.fetched = 0, 0, [0]
        self._lock = threading.Lock()

    def stored(self, _: Album) -> Mapping[int, str]:
        return {}

    def links(self, _: Album, media_ids: Sequence[int]) -> Mapping[int, Link]:
        return {i: Link(i, "", "https://x/") for i in media_ids}

    def fetch(self, _: Album, link: Link) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.fetched.append(link.media_id)
        if link.media_id in self.slow:
            self.released.wait(60)
        if link.media_id == 666:
            raise RuntimeError("nobody has thought of this")
        with self._lock:
            self.running -= 1
        return f"/{link.media_id}"


@pytest.fixture
def slow() -> Iterator[Slow]:
    library = Slow(slow=[12])
    yield library
    library.released.set()


def test_a_slow_photo_is_waited_for_no_longer_than_the_deadline(slow: Slow) -> None:
    pool = ThreadPoolExecutor(1)
    began = time.monotonic()
    album = replace(ALBUM, media_ids=(11, 12, 13))
    found = fetch_album_photos([album], library=slow, pool=pool, deadline_seconds=0.5, clock=time.monotonic)[album]
    assert time.monotonic() - began < 10
    late = Photograph(None, "deadline: not stored in time; `itel-cabinet media backfill` fetches it")
    assert found == {11: Photograph("/11", None, new=True), 12: late, 13: late}
    slow.released.set()
    pool.shutdown()
    assert 13 not in slow.fetched, "what has not begun by then is not begun"


def test_no_more_than_the_pool_are_fetched_at_once() -> None:
    library = Slow()
    assert len(fetched(library, replace(ALBUM, media_ids=tuple(range(1, 200))), threads=3)) == 199
    assert 1 <= library.most <= 3


def test_an_error_of_the_program_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    found = fetched(Slow(), replace(ALBUM, media_ids=(11, 666)))
    assert found == {11: Photograph("/11", None, new=True), 666: Photograph(None, "error: RuntimeError")}
    assert "assignment 5430007: an error of the program, at a photo" in caplog.text


def tasks(*media: list[int]) -> list[CabinetTask]:
    return [
        CabinetTask(record(tracking_message()), event(), found, parse_form(found))
        for found in (details(group("G", question("Captured Lower Cabinet Box", ids))) for ids in media)
    ]


def test_rows_tell_where_the_files_are() -> None:
    given_tasks = [*tasks([11, 12], [12], []), CabinetTask(record(tracking_message()), event(), details(), None)]
    library = Slow()
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as pool:
        found = fetch_photos(
            given_tasks,
            library=lambda: library,
            pool=lambda: pool,
            deadline_seconds=60,
            clock=time.monotonic,
            count=lambda outcome, number: counts.update({outcome: number}),
        )
    assert counts == {"stored": 2}
    assert [(task.record, task.form) for task in found] == [(task.record, task.form) for task in given_tasks]
    assert sorted(library.fetched) == [0, 11, 12], "each photo of an assignment once"
    now = datetime(2026, 1, 10, tzinfo=UTC).timestamp()
    rows = [row for row in make_attachment_rows(found, clock=lambda: now).to_pylist() if row["is_active"]]
    assert [(row["claim_media_id"], row["blob_path"], row["media_warning"]) for row in rows] == [
        (11, "/11", None),
        (12, "/12", None),
        (12, "/12", None),
    ]
    unfetched = [row for row in make_attachment_rows(given_tasks, clock=lambda: now).to_pylist() if row["is_active"]]
    assert {(row["blob_path"], row["media_warning"]) for row in unfetched} == {(None, None)}


def test_batches_without_photos_open_nothing() -> None:
    def nothing(*_: object) -> Any:
        pytest.fail("asked for")

    given_tasks = tasks([])
    found = fetch_photos(
        given_tasks, library=nothing, pool=nothing, deadline_seconds=1, clock=time.monotonic, count=nothing
    )
    assert found == given_tasks
