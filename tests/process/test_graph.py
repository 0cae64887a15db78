"""The shape of the jobs: what the delivery contract rests on is that everything after the read is one stage."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from itel_cabinet.pipeline.graph import build
from itel_cabinet.pipeline.jobs import Job
from itel_cabinet.pipeline.launch import parse_arguments
from itel_cabinet.pipeline.wiring import Wiring

SINKS = {
    Job.TRIGGER: {"Publish", "Unreadable", "Not found", "Unpublished"},
    Job.TRACKING: {"Track", "Keep forms", "Keep photos", "Tell of events", "Unreadable", "Not found"},
    Job.API: {
        *("Leave out what is settled", "Submit", "Tell of submissions", "Refused", "Keep the ledger", "Keep bodies"),
        *("Unreadable", "Not found"),
    },
    Job.CABINET: {
        *("Track", "Keep forms", "Keep photos", "Tell of events", "Unreadable", "Not found"),
        *("Leave out what is settled", "Submit", "Tell of submissions", "Refused", "Keep the ledger", "Keep bodies"),
    },
}


@pytest.mark.parametrize("job", list(Job))
def test_everything_after_the_read_is_one_fused_stage(job: Job) -> None:
    options = ["--bootstrap_servers=b:1", "--claimx_url=http://c", "--itel_url=http://i", "--tables_root=t"]
    settings, _ = parse_arguments(job.value, [*options, "--tracking_success_topic=told"])
    runner = FnApiRunner()
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions(["--streaming"]))
    build(pipeline, settings)
    _, stages = runner.create_stages(pipeline.to_runner_api(default_environment=runner._default_environment))
    read = next(s for s in stages if any(t.unique_name == "Read/Read/Process" for t in s.transforms))
    steps = {t.unique_name.partition("/")[0] for t in read.transforms}
    assert steps >= SINKS[job]
    others = {t.unique_name.partition("/")[0] for s in stages if s is not read for t in s.transforms}
    # What hands the shards from stage to stage is the runner's own.
    assert {name for name in others if not name.startswith("ref_PCollection")} == {"Read"}


def test_a_form_is_waited_for_unless_its_announcement_is_surely_old(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("itel_cabinet.pipeline.wiring.time.time", lambda: 100_000.0)
    monkeypatch.setattr("itel_cabinet.pipeline.wiring.time.sleep", slept.append)
    options = ["--bootstrap_servers=b:1", "--claimx_url=http://c", "--itel_url=http://i", "--form_wait_seconds=2"]
    wait = Wiring(parse_arguments("api", options)[0]).wait_for_form
    # Just now; by clocks that are slow or ahead; of a record without a time.
    for announced_at in (100_000.0, 99_940.0, 100_060.0, 0.0, -0.001, 200_000.0):
        wait(announced_at, 0.0)
    assert slept == [2.0] * 6
    wait(90_000.0, 0.0)
    assert slept == [2.0] * 6
    # What it has been here for was waited already.
    wait(100_000.0, 0.5)
    wait(100_000.0, 3.0)
    assert slept[6:] == [1.5, 0.0]
