"""What lives once in a process stays one, however often a runner ships what refers to it."""

from __future__ import annotations

import functools

from apache_beam.internal import pickler

from itel_cabinet.io.worker import get_pool


def test_a_shipped_reference_is_to_the_process_s_own() -> None:
    mine = get_pool("test-process", 1)  # holds threads and queues, which could not be shipped themselves
    shipped = pickler.loads(pickler.dumps(functools.partial(get_pool, "test-process", 1)))
    assert shipped() is mine
