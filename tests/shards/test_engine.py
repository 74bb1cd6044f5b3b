"""Several processes: the same bytes, and no harm when one of them, or all, come to an end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entire_id.errors import CropRejectedError, OutputExistsError, SourceChangedError, WorkerDiedError
from entire_id.records import Reason, no_progress
from entire_id.shards.engine import run_tasks
from entire_id.shards.listing import RejectedLog, list_crops
from entire_id.shards.pack import PackConfig, pack
from entire_id.shards.plan import plan_shards
from entire_id.shards.store import LocalStore
from entire_id.shards.write import ShardTask, write_shard
from entire_id.sources.layouts import open_source

from builders import Slow, go_on, many_crops, pack_folder, rejected_rows, settle, stop_pack, tree

FORMATS = ["parquet", "webdataset"]
SHARD_ROWS = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,260 crops, and some files in every folder that are none."""
    source = many_crops(tmp_path_factory.mktemp("engine") / "source", people=60, shots=20)
    for number in range(0, 60, 5):
        (source / "query" / f"{number:05d}_c005s0_9.jpg").write_bytes(b"")
        (source / "bounding_box_test" / f"{number:05d}_c005s0_9.jpg").write_bytes(b"no picture")
    settle()
    return source


@pytest.fixture(scope="module")
def reference(source: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """What one undisturbed process makes of it: files, and lines about rejected ones."""
    out = pack_folder(source, source.parent / "out", shard_rows=SHARD_ROWS)
    return tree(out), rejected_rows(out)


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def tasks(source: Path, folder: Path) -> list[ShardTask]:
    """Return the shards to write, as `pack` would hand them over."""
    for name in ("tree", "notes"):
        (folder / name).mkdir(parents=True)
    opened = open_source(source)
    with RejectedLog(folder / "rejected.csv", strict=False) as log:
        listing = list_crops(opened, 0, folder / "listing", log, no_progress)
    return [
        ShardTask(
            source=opened,
            rows=listing.take(plan.rows),
            group_stops=tuple(plan.group_stops.tolist()),
            stem=plan.stem,
            format="parquet",
            decode=False,
            store=LocalStore(folder / "tree", folder / "notes"),
        )
        for plan in plan_shards(listing.rows, SHARD_ROWS, 0)
    ]


# --- the same bytes


@pytest.mark.parametrize("format_", FORMATS)
def test_two_jobs_make_the_bytes_of_one(source: Path, tmp_path: Path, format_: str) -> None:
    one, two = (
        go_on(source, tmp_path / f"jobs{jobs}", format=format_, shard_rows=SHARD_ROWS, jobs=jobs) for jobs in (1, 2)
    )
    assert tree(one.folder) == tree(two.folder)
    assert one.rejected_csv.read_bytes() == two.rejected_csv.read_bytes()
    assert one.rejected == two.rejected == {Reason.EMPTY: 12, Reason.NOT_AN_IMAGE: 12}
    assert (one.manifest, one.cameras_undescribed) == (two.manifest, two.cameras_undescribed)
    assert not list(tmp_path.glob("*.partial*"))


def test_more_jobs_than_shards_are_no_trouble(source: Path, tmp_path: Path) -> None:
    one, many = (pack_folder(source, tmp_path / f"jobs{jobs}", jobs=jobs) for jobs in (1, 5))
    assert tree(one) == tree(many)


@pytest.mark.parametrize("jobs", [1, 2])
def test_shards_come_in_the_order_of_their_tasks_and_few_tasks_are_taken_ahead(
    source: Path, tmp_path: Path, jobs: int
) -> None:
    todo, taken = tasks(source, tmp_path), 0

    def one_by_one() -> Iterator[ShardTask]:
        nonlocal taken
        for task in todo:
            taken += 1
            yield task

    for number, done in enumerate(run_tasks(write_shard, one_by_one(), jobs)):
        assert done.shard.path == todo[number].path
        assert number + 1 <= taken <= number + 2 * jobs + 1, "a task holds its rows: not all may be in memory"
    assert number + 1 == len(todo) == taken


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_counts_every_crop_and_says_how_much_was_written(source: Path, tmp_path: Path, jobs: int) -> None:
    told = []

    def note(*args: object) -> None:
        told.append(args)

    pack(open_source(source), tmp_path / "out", PackConfig(name="entire-id", shard_rows=SHARD_ROWS, jobs=jobs), note)
    packing = [args for args in told if args[0] == "packing"]
    assert [done for _, done, *_ in packing] == sorted(done for _, done, *_ in packing)
    assert packing[-1][1:3] == (1284, 1284), "rejected crops are done too"
    assert packing[-1][3].endswith("24 rejected")


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_process_and_no_open_file_is_left(source: Path, tmp_path: Path, jobs: int) -> None:
    pack_folder(source, tmp_path / "warm", jobs=jobs)  # the fork server stays
    before = len(list(Path("/proc/self/fd").iterdir()))
    pack_folder(source, tmp_path / "out", shard_rows=SHARD_ROWS, jobs=jobs)
    assert children() == set()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


# --- processes that end early


def test_a_worker_that_is_killed_is_named_and_the_next_run_goes_on(
    source: Path, reference: tuple, tmp_path: Path
) -> None:
    def kill(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done > 300:
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    config = PackConfig(name="entire-id", shard_rows=SHARD_ROWS, jobs=2)
    with pytest.raises(WorkerDiedError, match="Type the same command again"):
        pack(open_source(source), tmp_path / "out", config, kill)
    assert children() == set()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    report = pack(open_source(source), tmp_path / "out", config)
    assert report.num_resumed >= 5
    assert (tree(report.folder), rejected_rows(report.folder)) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.rejected.csv"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_worker_that_is_killed_before_all_tasks_are_handed_over_is_named_too(
    source: Path, tmp_path: Path, number: int
) -> None:
    todo = tasks(source, tmp_path)

    def deadly() -> Iterator[ShardTask]:
        for place, task in enumerate(todo):
            if place == number:
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
                while children():  # until everybody has noticed
                    time.sleep(0.01)
                time.sleep(0.1)
            yield task

    with pytest.raises(WorkerDiedError):
        list(run_tasks(write_shard, deadly(), 2))
    assert children() == set()


def test_a_crop_that_vanishes_is_told_across_processes(source: Path, tmp_path: Path) -> None:
    crops = many_crops(tmp_path / "crops", people=60, shots=20)

    def take_away(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done < 100:
            for path in (crops / "bounding_box_test").glob("*s0_7.jpg"):
                path.unlink()

    config = PackConfig(name="entire-id", shard_rows=SHARD_ROWS, jobs=2)
    with pytest.raises(SourceChangedError, match="vanished .* Type the same command again") as caught:
        pack(open_source(crops), tmp_path / "out", config, take_away)
    assert caught.value.path.endswith("s0_7.jpg")
    pack(open_source(crops), tmp_path / "out", config)
    assert tree(tmp_path / "out") == tree(pack_folder(crops, tmp_path / "fresh", shard_rows=SHARD_ROWS))


def test_an_error_of_ours_stops_every_worker_before_the_work_is_removed(source: Path, tmp_path: Path) -> None:
    """Who removes a folder while others write into it leaves a part of it, and locks out the next run."""
    config = PackConfig(name="entire-id", shard_rows=20, jobs=2, strict=True)
    with pytest.raises(CropRejectedError):
        pack(Slow(source, 0.01), tmp_path / "out", config)
    left = sorted(path.name for path in tmp_path.iterdir())
    time.sleep(0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == left == []
    assert children() == set()


def test_an_interruption_stops_every_worker_before_the_folder_is_free_for_others(source: Path, tmp_path: Path) -> None:
    class StoppedHereError(KeyboardInterrupt):
        pass

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing":
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        pack(Slow(source, 0.01), tmp_path / "out", PackConfig(name="entire-id", shard_rows=20, jobs=2), interrupt)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    time.sleep(0.5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert children() == set()


def test_work_of_two_jobs_is_gone_on_with_by_one_and_that_of_one_by_two(
    source: Path, reference: tuple, tmp_path: Path
) -> None:
    for first, second in ((2, 1), (1, 2)):
        out = tmp_path / f"out{first}"
        stop_pack(source, out, 600, shard_rows=SHARD_ROWS, jobs=first)
        report = go_on(source, out, shard_rows=SHARD_ROWS, jobs=second)
        assert report.num_resumed >= 8
        assert (tree(out), rejected_rows(out)) == reference


# --- whole runs, as real processes

SCRIPT = """
import sys
from pathlib import Path
from entire_id.shards.pack import PackConfig, pack
from builders import Slow

if __name__ == "__main__":
    config = PackConfig(name="entire-id", shard_rows=int(sys.argv[3]), jobs=int(sys.argv[4]))
    pack(Slow(Path(sys.argv[1]), float(sys.argv[5])), Path(sys.argv[2]), config)
"""


class Run:
    """A process, and its family, that packs slowly."""

    def __init__(self, source: Path, out: Path, jobs: int, wait_s: float = 0.002) -> None:
        script = out.parent / "slow.py"
        script.write_text(SCRIPT)
        arguments = [str(value) for value in (source, out, SHARD_ROWS, jobs, wait_s)]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._notes = out.with_name(out.name + ".partial") / "notes"
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths},
        )

    def wait_for(self, shards: int) -> None:
        """Wait until so many shards are finished."""
        while self.process.poll() is None and len(list(self._notes.glob("*.json"))) < shards:
            time.sleep(0.001)
        assert self.process.poll() is None, self.process.communicate()

    def family(self) -> list[int]:
        """Return the processes of its session that are alive."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def end(self) -> None:
        """End whatever is left."""
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """Runs that a test starts; none survives it."""
    started: list[Run] = []
    yield started
    for run in started:
        run.end()


@pytest.mark.parametrize("whom", ["the process", "its group"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_the_work_and_the_next_run_goes_on(
    source: Path, reference: tuple, tmp_path: Path, runs: list[Run], jobs: int, whom: str
) -> None:
    """A terminal sends it to the whole group; `kill -INT`, and most supervisors, to the first process alone."""
    run = Run(source, tmp_path / "out", jobs)
    runs.append(run)
    run.wait_for(shards=3)
    (os.kill if whom == "the process" else os.killpg)(run.process.pid, signal.SIGINT)
    _, said = run.process.communicate(timeout=20)
    assert run.process.returncode == -signal.SIGINT, said
    assert "KeyboardInterrupt" in said
    time.sleep(0.2)
    assert run.family() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "slow.py"]
    report = go_on(source, tmp_path / "out", shard_rows=SHARD_ROWS)
    assert report.num_resumed >= 3
    assert (tree(report.folder), rejected_rows(report.folder)) == reference


def test_ctrl_c_at_the_command_is_no_traceback(source: Path, reference: tuple, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "entire_id", "pack", str(source), str(out), "--shard-size", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(tmp_path.glob("out.partial/notes/*.json"))) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    stdout, said = process.communicate()
    assert process.returncode not in (0, 3), said
    assert "Traceback" not in said
    assert stdout == ""
    assert not out.exists()
    assert go_on(source, out, shard_rows=SHARD_ROWS).num_resumed >= 1
    assert (tree(out), rejected_rows(out)) == reference


@pytest.mark.parametrize("jobs", [1, 2])
def test_of_two_packs_into_one_folder_the_second_is_refused_and_the_first_ends_well(
    source: Path, reference: tuple, tmp_path: Path, runs: list[Run], jobs: int
) -> None:
    run = Run(source, tmp_path / "out", jobs)
    runs.append(run)
    run.wait_for(shards=1)
    run.process.send_signal(signal.SIGSTOP)
    before = tree(tmp_path) if jobs == 1 else None
    command = [sys.executable, "-m", "entire_id", "pack", str(source), str(tmp_path / "out"), "--shard-size", "60"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: '{tmp_path / 'out'}' cannot be written: another run is making it")
    assert refused.stderr.count("\n") == 1
    assert before is None or tree(tmp_path) == before, "the second touched nothing"
    run.process.send_signal(signal.SIGCONT)
    _, said = run.process.communicate(timeout=60)
    assert (run.process.returncode, said) == (0, "")
    assert (tree(tmp_path / "out"), rejected_rows(tmp_path / "out")) == reference


def test_when_the_first_process_is_killed_its_workers_end_too(source: Path, tmp_path: Path, runs: list[Run]) -> None:
    """Nobody would stop them: each holds its memory until the machine restarts."""
    run = Run(source, tmp_path / "out", 2)
    runs.append(run)
    run.wait_for(shards=2)
    assert len(run.family()) >= 3
    run.process.kill()
    run.process.wait()
    limit = time.monotonic() + 5
    while run.family() and time.monotonic() < limit:
        time.sleep(0.05)
    assert run.family() == []


@pytest.mark.parametrize("number", range(2))
def test_workers_of_a_killed_run_do_not_write_into_that_of_the_next(
    source: Path, reference: tuple, tmp_path: Path, runs: list[Run], number: int
) -> None:
    """They may be in the middle of a shard. The next run is refused while they live, or is safe from them."""
    run = Run(source, tmp_path / "out", 2, wait_s=0.004)
    runs.append(run)
    run.wait_for(shards=1 + int(np.random.default_rng(number).integers(3)))
    run.process.kill()
    run.process.wait()
    limit = time.monotonic() + 20
    while True:
        try:
            report = go_on(source, tmp_path / "out", shard_rows=SHARD_ROWS)
            break
        except OutputExistsError:
            assert time.monotonic() < limit
            time.sleep(0.05)
    assert (tree(report.folder), rejected_rows(report.folder)) == reference
    time.sleep(1.5)  # what a worker that still lived would need for its shard
    assert tree(report.folder) == reference[0]
    assert not (tmp_path / "out.partial").exists()
