"""What is changed in a process, and by what; and what lives there once."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.internal import pickler

from itel_cabinet.io.worker import ALLOCATORS, get_pool

IMPORTING = """
import importlib, logging, os, pkgutil, signal

def look():
    root = logging.getLogger()
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    return dict(os.environ), root.filters[:], root.handlers[:], root.level, handlers

logging.getLogger().addHandler(logging.NullHandler())  # Beam itself logs at import, which would make a handler
before, count = look(), 0
for room in ("io", "pipeline", "transforms"):
    package = importlib.import_module(f"itel_cabinet.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
assert count > 60, count
assert look() == before
"""

PREPARING = """
import logging, os
from itel_cabinet.io.worker import prepare
prepare()
prepare()
assert os.environ["_RJEM_MALLOC_CONF"].startswith("narenas:")
[kept] = logging.getLogger().filters
logging.warning("apitools not found")
logging.warning("something else")
import pyarrow
assert pyarrow.default_memory_pool().backend_name == "system"
"""

# Blocks that are in use lie among those that are free: of its own accord glibc gives nothing back.
GIVING_BACK = """
from itel_cabinet.io.worker import give_back

def resident_mb():
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * 4 / 1024

give_back()
blocks = [bytes(1_000) for _ in range(100_000)]
held = blocks[::100]
del blocks
free = resident_mb()
give_back()
assert resident_mb() > free - 10, "once in five seconds is enough"
give_back._next = 0
give_back()
assert resident_mb() < free - 70, (free, resident_mb())
"""


def run(program: str, **environment: str) -> str:
    """What the program writes to stderr."""
    inherited = {name: value for name, value in os.environ.items() if name not in ALLOCATORS}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_importing_any_module_changes_nothing_in_the_process() -> None:
    run(IMPORTING)


def test_a_prepared_process_has_limited_allocators_and_no_known_warnings() -> None:
    assert run(PREPARING) == "WARNING:root:something else\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_what_is_free_is_given_back() -> None:
    run(GIVING_BACK)


def test_what_the_environment_says_of_allocators_stays() -> None:
    run(f"{PREPARING}assert os.environ['_RJEM_MALLOC_CONF'] == 'narenas:9'", _RJEM_MALLOC_CONF="narenas:9")


def test_the_image_limits_the_allocators_likewise() -> None:
    image = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8")
    assert [name for name, value in ALLOCATORS.items() if f" {name}={value}" not in image] == []


def test_a_shipped_reference_is_to_the_process_s_own() -> None:
    mine = get_pool("test-process", 1)  # holds threads and queues, which could not be shipped themselves
    shipped = pickler.loads(pickler.dumps(functools.partial(get_pool, "test-process", 1)))
    assert shipped() is mine
