"""Where shards are written and checked: in this process, in several, or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import pyarrow as pa

from entire_id.errors import ClusterError, MissingExtraError, WorkerDiedError

__all__ = ["check_ray", "run_on_ray", "run_tasks"]

Task = TypeVar("Task")
Done = TypeVar("Done")

_MAX_RETRIES = 3  # of a task whose worker died
_PATIENCE_S = 10  # with an address where a cluster should answer


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
    """Use one core, and end with the process that gives the work: its lock on the folder goes with it.

    Ctrl-C is left to that process: a worker that it hits while it holds a lock of the queues makes all wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# --- Ray --------------------------------------------------------------------------------------------------------------


def check_ray() -> None:
    """Make sure that Ray is installed.

    Raises:
        MissingExtraError: it is not.
    """
    _import_ray()


def run_on_ray(
    work: Callable[[Task], Done], tasks: Iterable[Task], jobs: int, address: str | None = None
) -> Generator[Done, None, None]:
    """Yield `work(task)` in the order of `tasks`, done by workers of Ray; see `run_tasks`.

    A cluster that the caller is connected to already is used, and stays connected. A task whose worker dies is done
    again, up to three times.

    Args:
        work: a function of a module that all machines have.
        tasks: what to do; taken a few at a time.
        jobs: tasks at work at once, a processor each.
        address: of the cluster to join, `auto` or `host:port`; without one, a cluster of this machine alone is started
            and ended.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster does not answer, or breaks down.
        WorkerDiedError: the workers of one task died again and again.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, jobs, address)
    try:
        yield from _run_remotely(ray, work, iter(tasks), jobs, address or "local")
    finally:
        if is_ours:
            ray.shutdown()  # ends what was started, and only leaves what was joined


def _import_ray() -> Any:  # noqa: ANN401 Ray is optional, so its types are not at hand
    # Read when Ray is imported: nothing is reported to anyone, and nobody is asked.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning about devices that nobody uses
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtraError("ray", "--engine ray", "ray") from error
    return ray


def _connect(ray: Any, jobs: int, address: str | None) -> None:  # noqa: ANN401
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:  # "local" asks for a new cluster even where RAY_ADDRESS names another
        alone = {"address": "local", "num_cpus": jobs, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= alone
    else:
        _check_answers(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(address or "local", str(error).strip() or type(error).__name__) from error


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself goes on trying for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():  # auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except OSError as error:
        raise ClusterError(address, error.strerror or str(error)) from error


def _run_remotely(
    ray: Any,  # noqa: ANN401
    work: Callable[[Task], Done],
    tasks: Iterator[Task],
    jobs: int,
    address: str,
) -> Generator[Done, None, None]:
    start = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_work_with_one_core)
    waiting: deque[Any] = deque()  # in the order of the tasks
    running: list[Any] = []
    try:
        while True:
            room = min(jobs - len(running), 2 * jobs - len(waiting))
            started = [start.remote(work, task) for task in islice(tasks, max(room, 0))]
            waiting.extend(started)
            running.extend(started)
            if not waiting:
                return
            if waiting[0] in running:
                _, running = ray.wait(running)
            else:
                yield _result(ray, waiting.popleft())
    except ray.exceptions.RayError as error:
        raise ClusterError(address, str(error)) from error
    finally:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(running, num_returns=len(running))  # nobody writes any more from here on


def _work_with_one_core(work: Callable[[Task], Done], task: Task) -> Done:
    pa.set_cpu_count(1)
    return work(task)


def _result(ray: Any, task: Any) -> Any:  # noqa: ANN401
    """Return what a task returned, or raise what it raised, as it was."""
    errors = ray.exceptions
    try:
        return ray.get(task)
    except errors.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
        raise WorkerDiedError from error
