"""Thread pools for slow calls: one a purpose and process, shared by every bundle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from itel_cabinet.io.worker.process import once_per_process

__all__ = ["get_pool"]


@once_per_process
def get_pool(purpose: str, threads: int) -> ThreadPoolExecutor:
    """The process's pool for ``purpose``: at most ``threads`` of its calls run at a time."""
    return ThreadPoolExecutor(threads, thread_name_prefix=purpose)
