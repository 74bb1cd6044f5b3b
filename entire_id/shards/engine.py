"""Where shards are written and checked: in this process, or in several."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

import pyarrow as pa

from entire_id.errors import WorkerDiedError

__all__ = ["run_tasks"]

Task = TypeVar("Task")
Done = TypeVar("Done")


def run_tasks(work: Callable[[Task], Done], tasks: Iterable[Task], jobs: int) -> Generator[Done, None, None]:
    """Yield `work(task)` in the order of `tasks`. Close it to be sure that no worker is at work any more.

    Args:
        work: a function of a module, such as `write_shard`.
        tasks: what to do; taken a few at a time, so that they need not all be in memory.
        jobs: processes at work; 1 works in this one. With more, a script that calls this must keep its own work under
            `if __name__ == "__main__"`, as always where Python starts processes anew.

    Raises:
        WorkerDiedError: a worker process was killed.
    """
    if jobs == 1:
        yield from map(work, tasks)
        return
    tasks = iter(tasks)
    context = get_context("forkserver")  # not fork: Arrow's threads do not survive it
    context.set_forkserver_preload([work.__module__])
    waiting: deque[Future[Done]] = deque()
    with ProcessPoolExecutor(jobs, context, _start_worker) as pool:
        try:
            waiting.extend(pool.submit(work, task) for task in islice(tasks, 2 * jobs))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, task) for task in islice(tasks, 1))
        except BrokenProcessPool as error:
            raise WorkerDiedError from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Use one core, and end with the process that gives the work: its lock on the folder goes with it."""
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
