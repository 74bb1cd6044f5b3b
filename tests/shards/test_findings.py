"""A check that is stopped goes on where it was, and finds what an undisturbed one finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from entire_id.shards.manifest import read_manifest
from entire_id.shards.verify import Kind, VerifyReport, verify

from builders import StoppedError, many_crops, pack_folder, settle

SHARD_ROWS = 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 crops in 90 shards, one of the first with a damaged image."""
    folder = tmp_path_factory.mktemp("findings")
    packed = pack_folder(many_crops(folder / "crops", people=60, shots=2), folder / "entire-id", shard_rows=SHARD_ROWS)
    flip(packed / read_manifest(packed).shards[1].path)
    return packed


@pytest.fixture
def packed(template: Path, tmp_path: Path) -> Path:
    """A copy, old enough to be relied on."""
    copied = shutil.copytree(template, tmp_path / "entire-id")
    settle()
    return copied


def flip(path: Path) -> None:
    """Change a bit of the first image, and no time but the one that nobody can set."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def notes(folder: Path) -> Path:
    return folder.with_name(folder.name + ".verifying")


def stop_verify(folder: Path, shards: int, **options: object) -> None:
    """Check so many shards, then be interrupted."""
    calls = iter(range(1, shards + 1))

    def interrupt(*_: object) -> None:
        if next(calls) == shards:
            raise StoppedError

    with pytest.raises(StoppedError):
        verify(folder, interrupt, **options)


def lines(folder: Path) -> list[bytes]:
    """The whole lines of the notes about shards."""
    return notes(folder).read_bytes().split(b"\n")[1:-1]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "entire_id", "verify", str(folder), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_half_way(folder: Path, *options: str) -> int:
    """Kill a run that has checked a few shards and return how many; try again if it was quicker than this process."""
    for _ in range(10):
        process = start(folder, *options)
        while process.poll() is None and not (notes(folder).exists() and len(lines(folder)) >= 5):
            time.sleep(0.001)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL and notes(folder).exists():
            return len(lines(folder))
    raise AssertionError("every run came to its end")


def test_a_run_that_is_killed_is_gone_on_with(packed: Path) -> None:
    reference = verify(packed)
    finished = kill_half_way(packed, "--jobs", "2")
    assert finished < len(read_manifest(packed).shards)
    again = start(packed)
    stdout, said = again.communicate(timeout=60)
    assert again.returncode == 3, said
    assert f"went on with {finished} shards that an interrupted run had checked" in said
    found = json.loads(stdout)
    assert [(one["kind"], one["where"], one["detail"]) for one in found.pop("problems")] == [
        (one.kind, one.where, one.detail) for one in reference.problems
    ]
    assert VerifyReport(reference.problems, **found) == reference
    assert [path.name for path in packed.parent.iterdir()] == ["entire-id"]


def test_what_an_interrupted_run_found_is_in_the_report_of_the_next(packed: Path) -> None:
    reference = verify(packed)
    assert [problem.kind for problem in reference.problems] == [Kind.SHA256, Kind.IMAGE]
    stop_verify(packed, 10)
    report = verify(packed)
    assert (report, report.num_resumed, reference.num_resumed) == (reference, 10, 0)
    assert not notes(packed).exists()


def test_a_run_may_be_interrupted_again_and_again(packed: Path) -> None:
    reference = verify(packed)
    for number in (3, 10, 20):
        stop_verify(packed, number)
        assert len(lines(packed)) == number
    report = verify(packed, jobs=2)
    assert (report, report.num_resumed) == (reference, 20)


@pytest.mark.parametrize("kind", ["path", "meta_path"])
def test_a_shard_that_was_touched_in_between_is_checked_again(packed: Path, kind: str) -> None:
    stop_verify(packed, 10)
    shard = read_manifest(packed).shards[4]
    flip(packed / getattr(shard, kind))
    report = verify(packed)
    assert report.num_resumed == 9
    assert getattr(shard, kind) in {problem.where for problem in report.problems}


def test_a_shard_that_went_missing_in_between_is_found(packed: Path) -> None:
    stop_verify(packed, 10)
    shard = read_manifest(packed).shards[4]
    (packed / shard.path).unlink()
    report = verify(packed)
    assert (Kind.MISSING, shard.path) in {(problem.kind, problem.where) for problem in report.problems}


def test_a_shard_that_is_younger_than_the_run_is_not_relied_on(packed: Path) -> None:
    """Its bytes may change once more without another time of change."""
    path = packed / read_manifest(packed).shards[4].path
    later = time.time() + 1000
    os.utime(path, (later, later))
    stop_verify(packed, 10)
    assert len(lines(packed)) == 9
    assert verify(packed).num_resumed == 9


@pytest.mark.parametrize("torn", [-1, -30], ids=["no end", "half"])
def test_a_torn_last_line_is_ignored(packed: Path, torn: int) -> None:
    reference = verify(packed)
    stop_verify(packed, 10)
    notes(packed).write_bytes(notes(packed).read_bytes()[:torn])
    stop_verify(packed, 12)
    assert all(json.loads(line) for line in lines(packed))
    report = verify(packed)
    assert (report, report.num_resumed) == (reference, 12)


def test_lines_that_are_no_findings_are_ignored(packed: Path) -> None:
    reference = verify(packed)
    stop_verify(packed, 10)
    first, *others = lines(packed)
    start = notes(packed).read_bytes().split(b"\n")[0]
    strange = [b"\0" * 50, b"[]", b'{"path": 1}', first.replace(b'"stamps"', b'"stamp"')]
    notes(packed).write_bytes(b"\n".join([start, *strange, *others, b""]))
    report = verify(packed)
    assert (report, report.num_resumed) == (reference, 9)


def test_findings_of_another_mode_or_manifest_are_not_used(packed: Path) -> None:
    stop_verify(packed, 10, quick=True)
    assert verify(packed, quick=True).num_resumed == 10
    stop_verify(packed, 10, quick=True)
    assert verify(packed).num_resumed == 0
    stop_verify(packed, 10)
    (packed / "manifest.json").write_text(replace(read_manifest(packed), version="1.0.1").to_json())
    assert verify(packed).num_resumed == 0
    assert not notes(packed).exists()


def test_of_two_runs_at_once_the_second_remembers_nothing_and_both_end_well(packed: Path) -> None:
    reference = verify(packed)
    others: list[VerifyReport] = []

    def start_another(stage: str, done: int, total: int, note: str) -> None:
        if not others:
            before = notes(packed).read_bytes()
            others.append(verify(packed))
            assert notes(packed).read_bytes() == before

    report = verify(packed, start_another)
    assert [report, *others] == [reference] * 2
    assert [one.num_resumed for one in (report, *others)] == [0, 0]
    assert not notes(packed).exists()


def test_a_file_of_somebody_else_is_left_alone(packed: Path) -> None:
    notes(packed).write_text("my notes")
    reference = verify(packed)
    assert notes(packed).read_text() == "my notes"
    notes(packed).unlink()
    notes(packed).mkdir()
    assert verify(packed) == reference
    assert notes(packed).is_dir()
    notes(packed).rmdir()
    notes(packed).symlink_to("elsewhere")
    assert verify(packed) == reference
    assert not (packed.parent / "elsewhere").exists()


def test_a_disk_that_cannot_be_written_is_no_trouble(template: Path, small_disk: Path) -> None:
    folder = small_disk / "entire-id"
    for name in ("data/query", "meta/query"):
        shutil.copytree(template / name, folder / name)
    for name in ("manifest.json", "README.md", "cameras.csv"):
        shutil.copy(template / name, folder)
    reference = verify(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert verify(folder) == reference
    assert sorted(path.name for path in small_disk.iterdir()) == ["entire-id"]
    stop_verify(folder, 10)
    assert verify(folder).num_resumed == 0
