"""Shards as facts on disk: what a run that was stopped leaves, what the next one takes over, and what it does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from entire_id.errors import CropRejectedError, EntireIdError, NothingToPackError, SourceChangedError, WriteFailedError
from entire_id.records import Reason
from entire_id.shards.manifest import read_manifest
from entire_id.shards.pack import PackConfig, pack
from entire_id.shards.verify import verify
from entire_id.sources.layouts import open_source

from builders import (
    CAMERAS,
    Wrapped,
    crop_names,
    go_on,
    image_bytes,
    many_crops,
    pack_folder,
    rejected_rows,
    resize_disk,
    run_until,
    settle,
    stop_pack,
    tree,
    write_crops,
    write_zip,
)

FORMATS = ["parquet", "webdataset"]
SHARD_ROWS = 120
KILLS = 16  # in one process; four more among two jobs, more in test_pack.py


def seen_inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


# --- killed at any moment


@pytest.fixture(scope="module")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 2,520 crops, some of which are none."""
    source = many_crops(tmp_path_factory.mktemp("large") / "source", people=120, shots=20)
    for number in range(0, 120, 7):
        (source / "query" / f"{number:05d}_c005s0_9.jpg").write_bytes(b"")
    (source / "notes.txt").write_text("x")
    settle()
    return source


@pytest.fixture(scope="module")
def references(large_source: Path) -> dict[str, tuple[dict[str, bytes], list[dict[str, str]]]]:
    """What an undisturbed run makes of it: files, and lines about rejected ones."""
    folder = large_source.parent
    outs = {f: pack_folder(large_source, folder / f, format=f, shard_rows=SHARD_ROWS) for f in FORMATS}
    return {format_: (tree(out), rejected_rows(out)) for format_, out in outs.items()}


@pytest.fixture(scope="module")
def num_steps(large_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many steps an undisturbed run takes."""
    steps = {}
    for format_ in FORMATS:
        out = tmp_path_factory.mktemp("counted") / "out"
        done = run_until(0, large_source, out, format=format_, shard_rows=SHARD_ROWS)
        assert int(done.stdout) > 100, done.stderr
        steps[format_] = int(done.stdout)
    return steps


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_step_the_next_run_ends_in_the_same_bytes(
    large_source: Path, references: dict, num_steps: dict, tmp_path: Path, number: int
) -> None:
    out, format_ = tmp_path / "out", FORMATS[number % 2]
    options = {"format": format_, "shard_rows": SHARD_ROWS}
    moment = (number + np.random.default_rng(number).random()) / KILLS  # one in each part of the run
    died = run_until(1 + int(moment * (num_steps[format_] - 1)), large_source, out, **options)
    assert died.returncode == -signal.SIGKILL, (died.stdout, died.stderr)
    assert not (tmp_path / "out.rejected.csv").exists() or moment > 0.9
    if out.exists():  # killed after the rename: it must be whole
        assert moment > 0.9
        assert (tree(out), rejected_rows(out)) == references[format_]
        return
    inodes = seen_inodes(tmp_path / "out.partial" / "tree")
    report = go_on(large_source, out, **options)
    assert (tree(out), rejected_rows(out)) == references[format_]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.rejected.csv"]
    num_shards = len(report.manifest.shards)
    assert report.num_resumed >= (moment - 0.15) * num_shards, "what was finished is taken over"
    assert len(seen_inodes(out) & inodes) >= 2 * report.num_resumed, "and not written anew"


KILLED_JOBS = """
import sys
from pathlib import Path
from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source

if __name__ == "__main__":
    config = PackConfig(name="entire-id", shard_rows=int(sys.argv[3]), jobs=2)
    pack(open_source(Path(sys.argv[1])), Path(sys.argv[2]), config)
"""


@pytest.mark.parametrize("number", range(4))
def test_two_jobs_killed_at_a_random_moment_leave_work_that_one_job_goes_on_with(
    large_source: Path, references: dict, tmp_path: Path, number: int
) -> None:
    """The whole family of processes at once, as when the machine stops."""
    out, notes = tmp_path / "out", tmp_path / "out.partial" / "notes"
    script = tmp_path / "script.py"
    script.write_text(KILLED_JOBS)
    command = [sys.executable, str(script), str(large_source), str(out), str(SHARD_ROWS)]
    enough = 1 + 4 * number + int(np.random.default_rng(number).integers(4))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and (not notes.is_dir() or len(list(notes.glob("*.json"))) < enough):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not out.exists()
    report = go_on(large_source, out, shard_rows=SHARD_ROWS)
    assert (tree(out), rejected_rows(out)) == references["parquet"]
    assert report.num_resumed >= enough - 1  # the last one seen may be a note without its name


def test_a_run_killed_again_and_again_gets_a_little_further_each_time(
    large_source: Path, references: dict, num_steps: dict, tmp_path: Path
) -> None:
    out, format_ = tmp_path / "out", "webdataset"
    options = {"format": format_, "shard_rows": SHARD_ROWS}
    finished = []
    for _ in range(4):
        assert run_until(num_steps[format_] // 5, large_source, out, **options).returncode == -signal.SIGKILL
        assert not out.exists()
        finished.append(len(list((tmp_path / "out.partial" / "notes").glob("*.json"))))
    assert finished == sorted(set(finished))
    report = go_on(large_source, out, **options)
    assert report.num_resumed == finished[-1] > len(report.manifest.shards) / 2
    assert (tree(out), rejected_rows(out)) == references[format_]


# --- what is taken over, and what is not


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """8 people, 24 query and 48 gallery crops on two continents, older than the clock is exact."""
    source = write_crops(tmp_path / "source", crop_names(8))
    (source / "cameras.csv").write_text(CAMERAS)
    settle()
    return source


ALL = 50  # crops after which a run is stopped: by then the query shards, and the first of the gallery, are done


def stop(source: Path, out: Path, **options: object) -> None:
    stop_pack(source, out, ALL, shard_rows=8, **options)


def test_a_run_that_was_stopped_is_taken_up_again(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path / "out")
    num_notes = len(list((tmp_path / "out.partial" / "notes").glob("*.json")))
    report = go_on(source, tmp_path / "out", shard_rows=8)
    assert 5 < num_notes == report.num_resumed < len(report.manifest.shards)
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "source"]


def rewrite(source: Path) -> None:
    (source / "query/00003_c001s0_760487.jpg").write_bytes(image_bytes(500))


def rewrite_with_its_old_time(source: Path) -> None:
    """The same size and time of writing: `rsync -t`, `cp -p` and a touch look like this."""
    path = source / "query/00003_c001s0_760487.jpg"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_an_old_file(source: Path) -> None:
    other = source.parent / "older.jpg"
    other.write_bytes(image_bytes(501))
    os.utime(other, ns=(1, 1))
    other.replace(source / "query/00003_c001s0_760487.jpg")


def swap_two(source: Path) -> None:
    one, other = source / "query/00003_c001s0_760487.jpg", source / "query/00003_c000s0_760487.jpg"
    one.rename(source / "aside")
    other.rename(one)
    (source / "aside").rename(other)


def spoil(source: Path) -> None:
    os.truncate(source / "query/00003_c001s0_760487.jpg", 100)


def remove(source: Path) -> None:
    (source / "query/00003_c001s0_760487.jpg").unlink()


def remove_a_person(source: Path) -> None:
    for path in source.glob("*/00003_*"):
        path.unlink()


def add(source: Path) -> None:
    write_crops(source, ["query/00003_c001s0_5.jpg", "bounding_box_test/00999_c001s0_5.jpg"], first_seed=600)


def rename(source: Path) -> None:
    (source / "query/00003_c001s0_760487.jpg").rename(source / "query/00003_c001s0_760488.jpg")


def rename_the_ending(source: Path) -> None:
    (source / "query/00003_c001s0_760487.jpg").rename(source / "query/00003_c001s0_760487.jpeg")


def shadow(source: Path) -> None:
    """Another file takes the key: its path is smaller."""
    write_crops(source, ["query/00003_c001s0_760487.JPG"], first_seed=700)


def describe_cameras_anew(source: Path) -> None:
    (source / "cameras.csv").write_text(CAMERAS.replace("1,asia", "1,europe"))


def describe_a_scene_anew(source: Path) -> None:
    (source / "cameras.csv").write_text(CAMERAS.replace("mall", "market"))


CHANGES = [
    *(rewrite, rewrite_with_its_old_time, replace_by_an_old_file, swap_two, spoil, remove, remove_a_person, add),
    *(rename, rename_the_ending, shadow, describe_cameras_anew, describe_a_scene_anew),
]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_of_the_source_the_next_run_equals_a_fresh_one(
    source: Path, tmp_path: Path, change: Callable[[Path], None], format_: str
) -> None:
    stop(source, tmp_path / "out", format=format_)
    change(source)
    report = go_on(source, tmp_path / "out", format=format_, shard_rows=8)
    fresh = pack_folder(source, tmp_path / "fresh", format=format_, shard_rows=8)
    assert tree(tmp_path / "out") == tree(fresh)
    assert rejected_rows(tmp_path / "out") == rejected_rows(fresh)
    assert report.num_resumed < len(report.manifest.shards)


@pytest.mark.parametrize("change", [rewrite, remove, rename_the_ending], ids=lambda change: change.__name__)
def test_a_change_of_one_crop_costs_one_shard(source: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    stop(source, tmp_path / "out")
    finished = len(list((tmp_path / "out.partial" / "notes").glob("*.json")))
    change(source)
    assert go_on(source, tmp_path / "out", shard_rows=8).num_resumed == finished - 1


@pytest.mark.parametrize("kind", ["folder", "zip", "table"])
def test_another_source_with_the_same_names_is_read_anew(tmp_path: Path, kind: str) -> None:
    """Both are old, and only their bytes differ: nothing of the one may get into the other's data set."""
    sources = {}
    for number, name in enumerate(("one", "other")):
        folder = write_crops(tmp_path / name, crop_names(8), first_seed=1000 * number)
        sources[name] = folder
        if kind == "zip":
            entries = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}
            sources[name] = write_zip(tmp_path / f"{name}.zip", entries)
        if kind == "table":
            rows = [f"{path.relative_to(folder).as_posix()},1,1,query" for path in folder.glob("query/*")]
            rows += [f"{path.relative_to(folder).as_posix()},1,1,gallery" for path in folder.glob("bounding*/*")]
            sources[name] = folder / "table.csv"
            sources[name].write_text("path,pid,camid,split\n" + "\n".join(rows))
    settle()
    stop_pack(sources["one"], tmp_path / "out", 10, shard_rows=8)
    go_on(sources["other"], tmp_path / "out", shard_rows=8)
    assert tree(tmp_path / "out") == tree(pack_folder(sources["other"], tmp_path / "fresh", shard_rows=8))


def test_a_folder_put_in_the_place_of_the_source_is_read_anew(source: Path, tmp_path: Path) -> None:
    """Moving a folder changes no time of the files in it."""
    write_crops(tmp_path / "other", crop_names(8), first_seed=1000)
    shutil.copy(source / "cameras.csv", tmp_path / "other" / "cameras.csv")
    settle()
    stop(source, tmp_path / "out")
    source.rename(tmp_path / "aside")
    (tmp_path / "other").rename(source)
    go_on(source, tmp_path / "out", shard_rows=8)
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


def test_a_link_that_points_elsewhere_now_is_read_anew(source: Path, tmp_path: Path) -> None:
    crop = source / "query/00003_c001s0_760487.jpg"
    crop.rename(source / "first.jpg")
    (source / "second.jpg").write_bytes(image_bytes(800))
    crop.symlink_to("../first.jpg")
    settle()
    stop(source, tmp_path / "out")
    crop.unlink()
    crop.symlink_to("../second.jpg")
    go_on(source, tmp_path / "out", shard_rows=8)
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


def test_a_zip_that_was_written_anew_is_read_anew(source: Path, tmp_path: Path) -> None:
    def archive() -> Path:
        entries = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.*")}
        return write_zip(tmp_path / "source.zip", entries)

    archive()
    settle()
    stop(tmp_path / "source.zip", tmp_path / "out")
    rewrite(source)
    archive()
    report = go_on(tmp_path / "source.zip", tmp_path / "out", shard_rows=8)
    assert report.num_resumed == 0
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


@pytest.mark.parametrize(
    "other",
    [
        *({"format": "webdataset"}, {"shard_rows": 9}, {"shard_rows": 1000}, {"seed": 1}, {"version": "2.0.0"}),
        *({"decode": True}, {"name": "other"}, {"jobs": 2}),
    ],
    ids=str,
)
def test_with_other_options_the_next_run_equals_a_fresh_one(source: Path, tmp_path: Path, other: dict) -> None:
    undecodable = bytearray(image_bytes(900))
    undecodable[-300:-2] = bytes(298)
    (source / "query/00003_c001s0_760487.jpg").write_bytes(undecodable)
    settle()
    stop(source, tmp_path / "out")
    report = go_on(source, tmp_path / "out", **{"shard_rows": 8} | other)
    fresh = pack_folder(source, tmp_path / "fresh", **{"shard_rows": 8} | other)
    assert tree(tmp_path / "out") == tree(fresh)
    assert rejected_rows(tmp_path / "out") == rejected_rows(fresh)
    if other.keys() <= {"version", "name", "jobs"}:
        assert report.num_resumed > 5, "these change no shard"
    if other.keys() <= {"format", "seed", "decode"}:
        assert report.num_resumed == 0
    assert not verify(tmp_path / "out").problems


def test_a_finished_crop_that_was_rejected_still_stops_a_strict_run(source: Path, tmp_path: Path) -> None:
    spoil(source)
    settle()
    stop(source, tmp_path / "out")
    with pytest.raises(CropRejectedError, match="00003_c001s0_760487"):
        go_on(source, tmp_path / "out", shard_rows=8, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_shard_whose_crops_were_all_rejected_is_remembered_too(source: Path, tmp_path: Path) -> None:
    for path in source.glob("query/*c021*"):
        path.write_bytes(b"")
    settle()
    stop(source, tmp_path / "out")
    report = go_on(source, tmp_path / "out", shard_rows=8)
    fresh = pack_folder(source, tmp_path / "fresh", shard_rows=8)
    assert report.rejected == {Reason.EMPTY: 8}
    assert tree(tmp_path / "out") == tree(fresh)
    assert rejected_rows(tmp_path / "out") == rejected_rows(fresh)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [cut_short, Path.unlink], ids=["cut", "gone"])
@pytest.mark.parametrize("kind", ["data", "meta"])
def test_a_finished_shard_that_is_not_whole_any_more_is_written_anew(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], kind: str
) -> None:
    stop(source, tmp_path / "out")
    work = tmp_path / "out.partial"
    finished = len(list(work.glob("notes/*.json")))
    damage(next(iter(sorted(work.glob(f"tree/{kind}/query/*")))))
    assert go_on(source, tmp_path / "out", shard_rows=8).num_resumed == finished - 1
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


NOTES = [
    *(b"", b"{", b"null", b"[]", b'"text"', b"7", b"{}", b"\xff\xfe", b'{"digest": "", "started_ns": 0, "done": {}}'),
    *(b'{"digest": 1, "started_ns": "x", "done": null}', b'{"digest": "", "started_ns": 0, "done": {"shard": 7}}'),
    b'{"digest": "", "started_ns": 0, "done": {"shard": null, "files": [{"path": 7}], "rejected": [], "kept": false}}',
    b'{"digest": "", "started_ns": 0, "done": {"shard": null, "files": [], "rejected": [{"reason": "x"}]}}',
]


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_a_note_that_makes_no_sense_is_no_obstacle(source: Path, tmp_path: Path, note: bytes) -> None:
    stop(source, tmp_path / "out")
    for path in (tmp_path / "out.partial" / "notes").glob("*.json"):
        path.write_bytes(note)
    assert go_on(source, tmp_path / "out", shard_rows=8).num_resumed == 0
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


def test_a_note_written_by_another_release_is_not_trusted(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path / "out")
    for path in (tmp_path / "out.partial" / "notes").glob("*.json"):
        note = json.loads(path.read_text())
        path.write_text(json.dumps(note | {"digest": "0" * 64}))
    assert go_on(source, tmp_path / "out", shard_rows=8).num_resumed == 0


def test_crops_younger_than_the_clock_is_exact_are_read_anew(tmp_path: Path) -> None:
    """A file written in the same tick as it was read could be written again without a later time."""
    source = write_crops(tmp_path / "source", crop_names(8))
    now = time.time_ns() + 10**9
    for path in source.rglob("*.jpg"):
        os.utime(path, ns=(now, now))
    stop(source, tmp_path / "out")
    assert go_on(source, tmp_path / "out", shard_rows=8).num_resumed == 0


def test_an_error_that_nothing_mends_leaves_no_work(source: Path, tmp_path: Path) -> None:
    stop(source, tmp_path / "out")
    for path in source.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(NothingToPackError):
        go_on(source, tmp_path / "out", shard_rows=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected.csv", "source"]


def test_a_list_of_rejected_files_that_is_somebody_elses_leaves_no_work(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.rejected.csv").write_text("years of work")
    with pytest.raises(EntireIdError, match="something else"):
        go_on(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected.csv", "source"]


# --- the disk is full


@pytest.mark.parametrize("format_", FORMATS)
def test_on_a_full_disk_the_command_says_so_and_goes_on_when_there_is_room(
    large_source: Path, references: dict, small_disk: Path, format_: str
) -> None:
    out = small_disk / "out"
    command = [sys.executable, "-m", "entire_id", "pack", str(large_source), str(out)]
    command += ["--shard-size", str(SHARD_ROWS), "--format", format_]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: '{out}.partial/tree/")
    assert "No space left on device" in done.stderr
    assert "Make room, then type the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in small_disk.iterdir()] == ["out.partial"]
    left = [path for path in (small_disk / "out.partial" / "tree").rglob("*") if path.is_file()]
    finished = len(list((small_disk / "out.partial" / "notes").glob("*.json")))
    assert finished > 0
    assert len(left) <= 2 * finished + 2, "no half-made file stays"

    resize_disk(small_disk, 64 << 20)
    report = go_on(large_source, out, format=format_, shard_rows=SHARD_ROWS)
    assert report.num_resumed == finished
    assert (tree(out), rejected_rows(out)) == references[format_]
    assert sorted(path.name for path in small_disk.iterdir()) == ["out", "out.rejected.csv"]


def test_on_a_full_disk_two_jobs_say_so_too(large_source: Path, references: dict, small_disk: Path) -> None:
    options = {"shard_rows": SHARD_ROWS, "jobs": 2}
    with pytest.raises(WriteFailedError, match="No space left on device.*same command again"):
        go_on(large_source, small_disk / "out", **options)
    assert [path.name for path in small_disk.iterdir()] == ["out.partial"]
    resize_disk(small_disk, 64 << 20)
    assert go_on(large_source, small_disk / "out", **options).num_resumed > 0
    assert (tree(small_disk / "out"), rejected_rows(small_disk / "out")) == references["parquet"]


@pytest.mark.parametrize("format_", FORMATS)
def test_wherever_the_disk_is_full_the_error_names_a_file_and_the_next_command(
    source: Path, tmp_path: Path, small_disk: Path, format_: str
) -> None:
    """A page more from run to run: it fills up at a shard, a note, cameras.csv, the manifest, the list of rejected."""
    for number in range(40):
        (source / f"a long name so that the list of rejected files takes several pages {'x' * 150} {number}").touch()
    settle()
    fresh = pack_folder(source, tmp_path / "fresh", format=format_, shard_rows=16)
    out, told = small_disk / "out", {}
    for pages in range(1, 400):
        resize_disk(small_disk, 4096 * pages)
        try:
            go_on(source, out, format=format_, shard_rows=16)
        except (EntireIdError, OSError) as error:
            told.setdefault((type(error), getattr(error, "path", None)), str(error))
            assert not out.exists()
            assert not (small_disk / "out.rejected.csv").exists()
        else:
            break
    assert tree(out) == tree(fresh)
    assert rejected_rows(out) == rejected_rows(fresh)
    assert sorted(path.name for path in small_disk.iterdir()) == ["out", "out.rejected.csv"]
    assert len(told) > 3
    bare = [text for (kind, path), text in told.items() if kind is not WriteFailedError or not path]
    assert bare == [], "each says which file, and what to type"
    assert all("Type the same" in text or "type the same" in text for text in told.values())


def test_a_disk_that_is_full_at_once_leaves_the_next_run_a_way(source: Path, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes((2 << 20) - 4096))
    with pytest.raises(EntireIdError):
        go_on(source, small_disk / "out")
    (small_disk / "other").unlink()
    assert go_on(source, small_disk / "out").manifest.num_rows == 72


def test_a_folder_that_nobody_may_write_to_is_an_error_that_names_it(source: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="locked"):
        go_on(source, tmp_path / "locked" / "out")


# --- the source changes while it is read


def vanish(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 100)


def write_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(image_bytes(77)[:200])


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("change", [grow, shrink, write_over], ids=lambda change: change.__name__)
def test_a_crop_that_is_written_to_while_it_is_read_stops_the_run_and_the_next_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], format_: str
) -> None:
    crop = source / "bounding_box_test/00003_c001s0_760493.jpg"
    read = os.read

    def disturb(descriptor: int, size: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == crop:
            change(crop)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", disturb)
    with pytest.raises(SourceChangedError, match="Type the same command again") as caught:
        go_on(source, tmp_path / "out", shard_rows=8, format=format_)
    assert caught.value.path == "bounding_box_test/00003_c001s0_760493.jpg"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "source"]
    assert not list((tmp_path / "out.partial").rglob("*.partial"))
    monkeypatch.undo()
    assert go_on(source, tmp_path / "out", shard_rows=8, format=format_).num_resumed > 0
    fresh = pack_folder(source, tmp_path / "fresh", shard_rows=8, format=format_)
    assert tree(tmp_path / "out") == tree(fresh)
    assert rejected_rows(tmp_path / "out") == rejected_rows(fresh)


def test_a_crop_that_vanishes_before_it_is_read_stops_the_run_and_the_next_goes_on(source: Path, tmp_path: Path):
    class Fading(Wrapped):
        def read(self, path: str) -> bytes:
            if path == "bounding_box_test/00003_c001s0_760493.jpg":
                vanish(source / path)
            return super().read(path)

    with pytest.raises(SourceChangedError, match=r"00003_c001s0_760493\.jpg': vanished .* same command again"):
        pack(Fading(source), tmp_path / "out", PackConfig(name="entire-id", shard_rows=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "source"]
    report = go_on(source, tmp_path / "out", shard_rows=8)
    assert report.num_resumed > 0
    assert report.manifest.num_rows == 71
    assert tree(tmp_path / "out") == tree(pack_folder(source, tmp_path / "fresh", shard_rows=8))


def test_the_command_names_a_crop_that_vanishes_and_exits_1(large_source: Path, tmp_path: Path) -> None:
    """A real process, stopped for a moment after its first shard while a crop of a later one is taken away."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(large_source, source)
    command = [sys.executable, "-m", "entire_id", "pack", str(source), str(out), "--shard-size", str(SHARD_ROWS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("out.partial/notes/*.json")):
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    remembered = {path.stem for path in tmp_path.glob("out.partial/notes/*.json")}
    assert not any(name.startswith("gallery") for name in remembered), "too slow to test anything"
    gone = sorted((source / "bounding_box_test").iterdir())
    for path in gone:
        path.unlink()
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert said.startswith("error: 'bounding_box_test/")
    assert "vanished while it was packed. Type the same command again" in said
    assert not out.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert list(read_manifest(out).splits) == ["query"]


# --- decoding


def garbled(kind: str) -> bytes:
    """Return a picture whose first and last bytes are right, and nothing in the middle."""
    data = image_bytes(42, (64, 128), kind)
    if kind == "PNG":
        start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    else:
        start, end = data.index(b"\xff\xda") + 14, len(data) - 2
    middle = np.random.default_rng(0).integers(0, 255, end - start, dtype=np.uint8)
    return data[:start] + middle.tobytes() + data[end:]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("format_", FORMATS)
def test_decoding_rejects_what_does_not_decode_and_keeps_everything_else(
    source: Path, tmp_path: Path, jobs: int, format_: str
) -> None:
    write_crops(source, ["query/00001_c000s0_1.png"], first_seed=300)
    sound = pack_folder(source, tmp_path / "sound", format=format_)
    bad = ["bounding_box_test/00001_c001s0_7.jpg", "query/00001_c000s0_7.png", "query/00001_c000s0_8.jpg"]
    for name in bad:
        (source / name).write_bytes(garbled("PNG" if name.endswith("png") else "JPEG"))
    plain = go_on(source, tmp_path / "plain", format=format_, jobs=jobs)
    assert plain.manifest.num_rows == 76, "without decoding, the header and the end say nothing of it"
    report = go_on(source, tmp_path / "decoded", format=format_, decode=True, jobs=jobs)
    assert [(row["path"], row["reason"]) for row in rejected_rows(report.folder)] == [(name, "corrupt") for name in bad]
    assert all("decode" in row["detail"] for row in rejected_rows(report.folder))
    assert report.manifest.num_rows == read_manifest(sound).num_rows == 73


@pytest.mark.parametrize(
    "middle", [b"", bytes(500), b"\x12\x34", None], ids=["nothing", "zeros", "two bytes", "the first half"]
)
def test_decoding_rejects_a_jpeg_without_most_of_its_pixels(source: Path, tmp_path: Path, middle: bytes | None) -> None:
    data = image_bytes(42, (64, 128))
    start = data.index(b"\xff\xda") + 14
    kept = data[start : start + (len(data) - start) // 2] if middle is None else middle
    (source / "query/00001_c000s0_8.jpg").write_bytes(data[:start] + kept + b"\xff\xd9")
    report = go_on(source, tmp_path / "out", decode=True)
    assert report.rejected == {Reason.CORRUPT: 1}


def test_decoding_changes_no_byte_of_a_sound_data_set(source: Path, tmp_path: Path) -> None:
    write_crops(source, ["query/00001_c000s0_1.png"], first_seed=300)
    (source / "query/00001_c000s0_2.jpg").write_bytes(image_bytes(301) + b"trailing bytes")
    plain, decoded = pack_folder(source, tmp_path / "a"), pack_folder(source, tmp_path / "b", decode=True)
    assert tree(plain) == tree(decoded)


def test_real_crops_all_decode(real_crops: Path, tmp_path: Path) -> None:
    assert pack(open_source(real_crops), tmp_path / "out", PackConfig(name="entire-id", decode=True)).rejected == {}
