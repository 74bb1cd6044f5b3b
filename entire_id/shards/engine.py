"""Where shards are written: in this process, or in several."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context

import pyarrow as pa

from entire_id.errors import WorkerDiedError
from entire_id.shards.write import ShardDone, ShardTask, write_shard

__all__ = ["run_tasks"]


def run_tasks(tasks: Iterable[ShardTask], jobs: int) -> Iterator[ShardDone]:
    """Yield the finished shards in the order of `tasks`.

    Args:
        tasks: what to write; taken a few at a time, so that they need not all be in memory.
        jobs: processes at work; 1 writes in this one.

    Raises:
        WorkerDiedError: a worker process was killed.
    """
    if jobs == 1:
        yield from map(write_shard, tasks)
        return
    tasks = iter(tasks)
    # Not fork: Arrow's threads do not survive it.
    with ProcessPoolExecutor(jobs, get_context("forkserver"), pa.set_cpu_count, (1,)) as pool:
        waiting: deque[Future[ShardDone]] = deque(pool.submit(write_shard, task) for task in islice(tasks, 2 * jobs))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(write_shard, task) for task in islice(tasks, 1))
        except BrokenProcessPool as error:
            raise WorkerDiedError from error
        finally:
            pool.shutdown(cancel_futures=True)
