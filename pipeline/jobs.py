"""The four jobs, and the options whose defaults differ between them. Imports next to nothing."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from itel_cabinet.pipeline import topics

__all__ = ["JOB_DEFAULTS", "Job"]


class Job(StrEnum):
    """What can be run; see docs/architecture.md."""

    TRIGGER = "trigger"
    TRACKING = "tracking"
    API = "api"
    CABINET = "cabinet"

    @property
    def writes_tables(self) -> bool:
        return self in (Job.TRACKING, Job.CABINET)

    @property
    def calls_itel(self) -> bool:
        return self in (Job.API, Job.CABINET)


def _job_defaults(topic: str, group: str, records: int, seconds: float, errors: str) -> dict[str, Any]:
    return {
        "input_topic": topic,
        "consumer_group": group,
        "max_batch_records": records,
        "max_batch_seconds": seconds,
        "itel_on_outage": "divert",
        "dead_letter_topic": errors,
    }


JOB_DEFAULTS: dict[Job, dict[str, Any]] = {
    Job.TRIGGER: _job_defaults(topics.CLAIMX_EVENTS, "itel_cabinet_trigger_group", 500, 0.02, topics.TASK_ERRORS),
    Job.TRACKING: _job_defaults(
        topics.TASK_EVENTS, "itel_cabinet_tracking_worker_group", 10_000, 0.5, topics.TASK_ERRORS
    ),
    # Nothing else hangs on this job, so it waits.
    Job.API: _job_defaults(topics.TASK_EVENTS, "itel_cabinet_api_worker_group", 500, 0.5, topics.ITEL_ERRORS)
    | {"itel_on_outage": "wait"},
    Job.CABINET: _job_defaults(topics.TASK_EVENTS, "itel_cabinet_group", 500, 0.5, topics.TASK_ERRORS),
}
"""The options whose default depends on the job."""
