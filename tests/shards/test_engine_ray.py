"""Ray as the engine: the same bytes, whoever dies; a real cluster of two workers on loopback."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from entire_id.errors import CropRejectedError, SourceChangedError, WorkerDiedError
from entire_id.remote import UNFINISHED
from entire_id.shards.engine import run_on_ray
from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source

from builders import Slow, go_on, many_crops, pack_folder, rejected_rows, settle, tree
from servers import Server, serve

SHARD_ROWS = 60
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3 where there is one; workers take over what the environment says of it."""
    with serve("s3" if find_spec("s3fs") else "ftp", tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(server: Server) -> Iterator[str]:
    """A cluster of two workers, and its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray = pytest.importorskip("ray")
    # Its workers must find builders.py.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [before])])
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=2, _node_ip_address="127.0.0.1", **options)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """420 crops, and a few files that are none."""
    source = many_crops(tmp_path_factory.mktemp("ray") / "source", people=20, shots=20)
    for number in range(5):
        (source / "query" / f"{number:05d}_c005s0_9.jpg").write_bytes(b"")
    settle()
    return source


@pytest.fixture(scope="module")
def reference(source: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """What one process makes of it."""
    out = pack_folder(source, source.parent / "out", shard_rows=SHARD_ROWS)
    return tree(out), rejected_rows(out)


CONFIG = PackConfig(name="entire-id", shard_rows=SHARD_ROWS, jobs=2, engine="ray")


def at_work(out: Path) -> set[int]:
    """Return the processes that are writing a shard: the names of unfinished files say so."""
    found = out.with_name(out.name + ".partial").glob(f"tree/data-*{UNFINISHED}")
    return {int(path.name.removesuffix(UNFINISHED).rpartition("-")[2]) for path in found}


def test_a_cluster_makes_the_bytes_of_one_process_and_stays_connected(
    cluster: str, source: Path, reference: tuple, tmp_path: Path
) -> None:
    import ray

    report = go_on(source, tmp_path / "out", shard_rows=SHARD_ROWS, jobs=2, engine="ray")
    assert (tree(report.folder), rejected_rows(report.folder)) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.rejected.csv"]
    assert ray.is_initialized()


def test_from_url_to_url_the_bytes_are_the_same(cluster: str, server: Server, source: Path, reference: tuple) -> None:
    url = server.put(source, "crops")
    report = pack(open_source(url), f"{server.url}/out", CONFIG)
    assert report.rejected_csv is not None
    packed = server.tree("out")
    assert packed == {name: data for name, data in reference[0].items() if name in packed}
    assert packed.keys() == {entry.path for entry in report.manifest.files} | {"manifest.json", "README.md"}
    assert not server.exists("out.partial")


def test_a_worker_that_is_killed_is_replaced_and_nobody_can_tell(
    cluster: str, source: Path, reference: tuple, tmp_path: Path
) -> None:
    out, killed = tmp_path / "out", []

    def kill(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and not killed:
            while not at_work(out):
                time.sleep(0.001)
            killed.append(at_work(out).pop())
            os.kill(killed[0], signal.SIGKILL)

    pack(Slow(source, 0.005), out, CONFIG, kill)
    assert killed
    assert (tree(out), rejected_rows(out)) == reference


def die(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def wait(task: tuple[Path, float]) -> Path:
    """Note that it has begun, wait, and note that it is done."""
    path, seconds = task
    path.with_suffix(".begun").touch()
    time.sleep(seconds)
    path.touch()
    return path


@pytest.fixture
def by_value(cluster: str) -> Iterator[None]:
    """The functions of this module travel as they are: workers cannot import a test."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def test_a_task_whose_worker_dies_every_time_ends_the_work(by_value: None) -> None:
    with pytest.raises(WorkerDiedError, match="Type the same command again"):
        list(run_on_ray(die, [1], 1))


def test_results_come_in_the_order_of_tasks_and_few_tasks_are_taken_ahead(by_value: None, tmp_path: Path) -> None:
    taken = 0

    def one_by_one() -> Iterator[tuple[Path, float]]:
        nonlocal taken
        for number in range(12):
            taken += 1
            yield tmp_path / f"{number}.done", 0.1 if number % 3 == 0 else 0.0

    for number, path in enumerate(run_on_ray(wait, one_by_one(), 2)):
        assert path.name == f"{number}.done"
        assert number + 1 <= taken <= number + 5
    assert number + 1 == taken == 12


def test_once_it_is_closed_nobody_is_at_work_and_nothing_more_is_begun(by_value: None, tmp_path: Path) -> None:
    first = [(tmp_path / "first.done", 0.0)]
    results = run_on_ray(wait, [*first, *((tmp_path / f"{number}.done", 0.5) for number in range(9))], 2)
    next(results)
    results.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    time.sleep(0.7)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(before) <= 2 + 2 * 2


def test_a_crop_that_vanishes_is_told_as_itself_and_the_next_run_goes_on(cluster: str, tmp_path: Path) -> None:
    crops = many_crops(tmp_path / "crops", people=20, shots=20)
    settle()

    def take_away(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done < 100:
            for path in (crops / "bounding_box_test").glob("*s0_7.jpg"):
                path.unlink()

    with pytest.raises(SourceChangedError, match="vanished .* Type the same command again") as caught:
        pack(Slow(crops, 0.001), tmp_path / "out", CONFIG, take_away)
    assert type(caught.value) is SourceChangedError
    assert caught.value.path.endswith("s0_7.jpg")
    report = go_on(crops, tmp_path / "out", shard_rows=SHARD_ROWS)
    assert report.num_resumed >= 1
    assert tree(tmp_path / "out") == tree(pack_folder(crops, tmp_path / "fresh", shard_rows=SHARD_ROWS))


def test_an_error_of_ours_stops_every_worker_before_the_work_is_removed(
    cluster: str, source: Path, tmp_path: Path
) -> None:
    config = PackConfig(name="entire-id", shard_rows=20, jobs=2, engine="ray", strict=True)
    with pytest.raises(CropRejectedError):
        pack(Slow(source, 0.005), tmp_path / "out", config)
    time.sleep(0.4)
    assert list(tmp_path.iterdir()) == []


# --- the command


def ray_processes() -> set[int]:
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"raylet" in command.read_bytes() or b"gcs_server" in command.read_bytes():
                found.add(int(command.parent.name))
    return found


def entire_id(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | environment
    )


def test_the_command_joins_a_cluster_and_leaves_it_running(
    cluster: str, source: Path, reference: tuple, tmp_path: Path
) -> None:
    import ray

    options = ["--name", "entire-id", "--shard-size", SHARD_ROWS, "--jobs", 2, "--engine", "ray", "--address", cluster]
    done = entire_id("pack", source, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("rejected 5 files"), "Ray itself has nothing to say"
    assert tree(tmp_path / "out") == reference[0]
    assert ray.get(ray.put("alive")) == "alive"
    assert [node["Alive"] for node in ray.nodes()] == [True]


def test_the_command_starts_a_cluster_of_its_own_and_ends_it(source: Path, reference: tuple, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    before = ray_processes()
    command = ["pack", source, tmp_path / "out", "--name", "entire-id", "--shard-size", SHARD_ROWS, "--engine", "ray"]
    done = entire_id(*command, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("rejected 5 files")
    assert ray_processes() <= before
    assert tree(tmp_path / "out") == reference[0]


def test_a_cluster_that_does_not_answer_is_named(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = entire_id("pack", source, tmp_path / "out", "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "error: the Ray cluster '127.0.0.1:1' does not do the work" in done.stderr
    assert "Connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_ray_the_command_says_what_to_install_and_makes_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "shadow" / "ray").mkdir(parents=True)
    (tmp_path / "shadow" / "ray" / "__init__.py").write_text("raise ModuleNotFoundError('No module named ray')")
    paths = os.pathsep.join([str(tmp_path / "shadow"), str(ROOT)])
    done = entire_id("pack", source, tmp_path / "out", "--engine", "ray", PYTHONPATH=paths)
    assert done.returncode == 1
    assert done.stderr == ("error: ray is not installed; --engine ray needs it. Type: pip install 'entire-id[ray]'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["shadow"]


def test_an_address_without_ray_is_wrong_usage(source: Path, tmp_path: Path) -> None:
    done = entire_id("pack", source, tmp_path / "out", "--address", "auto")
    assert done.returncode == 2
    assert "address 'auto' is for the engine ray" in done.stderr
