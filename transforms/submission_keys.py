"""Where iTel gets a submission, and under which key it recognises one that comes again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from urllib.parse import quote

from itel_cabinet.transforms.submissions import Submission

__all__ = ["batch_key", "fill_path", "idempotency_key", "name_key"]

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def fill_path(path: str, submission: Submission) -> str:
    """A path with what it is about in the place of its placeholders, percent-encoded."""
    if "{" not in path:
        return path
    values = {
        "assignment_id": str(submission.assignment_id),
        "project_id": submission.project_id,
        "task_id": str(submission.task_id),
        "event_id": submission.event_id,
    }
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", quote(value, safe="", errors="surrogatepass"))
    return path


def idempotency_key(event_id: str) -> str:
    """The event's id as a header can carry it: visible ASCII stays as it is, all else and ``%`` become ``%XX``. One to
    one."""
    return quote(event_id, safe=_VISIBLE, errors="surrogatepass")


def name_key(submissions: Sequence[Submission]) -> str:
    """The key under which iTel gets these together: of several the batch's, of one its own. A folder's key is the
    event's id."""
    if len(submissions) > 1:
        return batch_key([one.event_id for one in submissions])
    (one,) = submissions
    return one.key if one.key is not None else idempotency_key(one.event_id)


def batch_key(event_ids: Sequence[str]) -> str:
    """The idempotency key of a batch: the same for the same events in the same order, even if ClaimX has changed its
    answer by now.

    A task's own key has no place in a batch, since the payload's schema allows no further field. So iTel recognises a
    batch that comes again as it was, but not its tasks in another batch, as a crash may form it.
    """
    return f"batch-{hashlib.sha256(json.dumps(list(event_ids)).encode()).hexdigest()}"
