"""Secrets and personal data are planted wherever they can enter a job, and looked for wherever they could come out.

That the search would find them is shown by taking a redaction away, one at a time.
"""

from __future__ import annotations

import base64
import bz2
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import apache_beam as beam
import pytest

from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, Request, Response
from itel_cabinet.pipeline.graph import build
from itel_cabinet.pipeline.launch import parse_arguments
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack

CLAIMX_TOKEN, ITEL_KEY, KAFKA_PASSWORD = "claimx-s3cr3t-01", "itel-s3cr3t-02", "kafka-s3cr3t-03"
SECRETS = (CLAIMX_TOKEN, ITEL_KEY, KAFKA_PASSWORD)
PERSONAL = ("Zoelia", "Quastenberg", "zoelia.quastenberg@private.example", "5557654321")
FORM = (group("Photos", question("Upload Overview Photo(s)", [11, 12])),)
TOLD, ECHOED_BY_CLAIMX, ECHOED_BY_ITEL = 1, 2, 3

PATCHED = """
import importlib, sys
module, _, name = sys.argv.pop(1).partition(":")
*path, last = name.split(".")
target = importlib.import_module(module)
for part in path:
    target = getattr(target, part)
setattr(target, last, {replacement})
from itel_cabinet.pipeline.launch.job import main
sys.exit(main())
"""


def echo(request: Request) -> Response:
    """What some servers put into their errors: what they were sent."""
    customer = json.loads(request.body or b"{}").get("customer")
    return Response.of(400, {"authorization": request.headers["Authorization"], "customer": customer})


class EchoingClaimX(ClaimXSimulator):
    def answer(self, request: Request) -> Response:
        return echo(request) if request.path.endswith(f"/{ECHOED_BY_CLAIMX}") else super().answer(request)


class EchoingItel(ItelSimulator):
    def answer(self, request: Request) -> Response:
        return echo(request) if request.json()["assignmentId"] == ECHOED_BY_ITEL else super().answer(request)


@pytest.fixture
def claimx() -> Iterator[EchoingClaimX]:
    with EchoingClaimX(token=CLAIMX_TOKEN) as simulator:
        yield simulator


@pytest.fixture
def itel() -> Iterator[EchoingItel]:
    with EchoingItel(token=ITEL_KEY) as simulator:
        yield simulator


@pytest.fixture
def planted(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    key = tmp_path / "itel-key"
    key.write_text(ITEL_KEY + "\n")
    monkeypatch.setenv("CLAIMX_API_TOKEN", CLAIMX_TOKEN)
    monkeypatch.setenv("KAFKA_PASSWORD", KAFKA_PASSWORD)
    stack.options = {
        "claimx_auth": "bearer:env:CLAIMX_API_TOKEN",
        "itel_auth": f"bearer:file:{key}",
        "kafka_config": json.dumps({"sasl.password": "env:KAFKA_PASSWORD"}),
        "max_retries": "0",
    }
    first, last, email, phone = PERSONAL
    person = {"externalLinkData": {"firstName": first, "lastName": last, "email": email, "phone": phone, "url": "x"}}
    for assignment_id in (TOLD, ECHOED_BY_CLAIMX, ECHOED_BY_ITEL):
        stack.tell(tracking_message(event_id=f"e-{assignment_id}", assignment_id=assignment_id), *FORM, **person)
    producer = stack.broker.producer()
    producer.produce(stack.topic("tracking"), json.dumps(tracking_message(task_status=[email, last])).encode())
    producer.produce(stack.topic("tracking"), json.dumps([first, last, email, phone]).encode()[:-1])
    assert producer.flush(30) == 0
    return stack


def run(stack: Stack, without: str = "", replacement: str = "") -> dict[str, str]:
    """Run the `cabinet` job, if wanted ``without`` a redaction; all that it says, by where it says it."""
    command = stack.command("cabinet", until_caught_up="true")
    if without:
        given = command[command.index("cabinet") :]
        command = [sys.executable, "-c", PATCHED.format(replacement=replacement), without, *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as job:
        arguments = Path(f"/proc/{job.pid}/cmdline").read_bytes().decode()
        output = job.communicate(timeout=120)[0].decode()
    assert job.returncode == 0, output
    assert len(stack.dead_letters("errors")) == 3
    assert len(stack.dead_letters("itel_errors")) == 1
    said = {"log and counters": output, "command line": arguments, "graph": graph(command[command.index("cabinet") :])}
    for role in ("errors", "itel_errors", "success"):
        for message in stack.broker.read(stack.topic(role)):
            # A dead letter holds the record as it came, for the replay, and names in no other place.
            document = {k: v for k, v in json.loads(message.value or b"{}").items() if k not in ("key", "value")}
            headers = [(value or b"").decode() for _, value in message.headers]
            said[f"{role} at {message.offset}"] = json.dumps([document, headers], ensure_ascii=False)
    return said


def graph(arguments: list[str]) -> str:
    """The job as it is handed to a cluster, with what is packed in it unpacked."""
    settings, options = parse_arguments(arguments[0], [one for one in arguments[1:] if "until_caught_up" not in one])
    pipeline = beam.Pipeline(options=options)
    build(pipeline, settings)
    proto = pipeline.to_runner_api()
    texts = [proto.SerializeToString()]
    for transform in proto.components.transforms.values():
        texts += _unpacked(transform.spec.payload)
    return b"\n".join(texts).decode("latin-1")


def _unpacked(payload: bytes) -> Iterator[bytes]:
    """Beam ships functions as base64 of pickles that bz2 has compressed, somewhere in a message."""
    for packed in re.findall(rb"Qlpo[A-Za-z0-9+/]+=*", payload):
        yield bz2.BZ2Decompressor().decompress(base64.b64decode(packed[: len(packed) // 4 * 4]))


def leaks(said: Mapping[str, str]) -> set[str]:
    return {
        where for where, text in said.items() for private in (*SECRETS, *PERSONAL) if private.lower() in text.lower()
    }


def test_nothing_private_comes_out(planted: Stack) -> None:
    said = run(planted)
    assert "CLAIMX_API_TOKEN" in said["graph"], "the graph was not unpacked"
    assert leaks(said) == set()
    for table in (planted.tracking(), planted.forms()):
        assert not [secret for secret in SECRETS if secret in str(table)]


@pytest.mark.parametrize(
    ("without", "replacement"),
    [
        ("itel_cabinet.io.http.auth:Credentials.redact", "lambda self, text: text"),
        ("itel_cabinet.transforms.submitting:scrub", "lambda text, submissions: text"),
    ],
)
def test_without_a_redaction_it_would(planted: Stack, without: str, replacement: str) -> None:
    assert leaks(run(planted, without, replacement)) == {"itel_errors at 0"}
