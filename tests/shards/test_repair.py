"""Repairing: broken files come back byte for byte, or stay as they are with the reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.errors import DatasetNotFoundError, OutputExistsError
from entire_id.shards.manifest import FileEntry, Shard, file_digest, read_manifest
from entire_id.shards.repair import RepairReport, repair
from entire_id.shards.verify import Kind, verify
from entire_id.sources.layouts import open_source
from entire_id.staging import work_folder

from builders import CAMERAS, StoppedError, crop_names, image_bytes, pack_folder, settle, tree, write_crops

FORMATS = ["parquet", "webdataset"]
SHARD_ROWS = 16
JUNK = [f"bounding_box_test/-1_c00{camid}s0_{number}.jpg" for camid in (0, 1) for number in range(12)]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops with junk, a train part and files that packing rejects, and what packing makes of them."""
    folder = tmp_path_factory.mktemp("templates")
    train = [f"bounding_box_train/{pid:05d}_c000s0_{number}.jpg" for pid in range(5) for number in range(3)]
    source = write_crops(folder / "crops", [*crop_names(8), *JUNK, *train])
    (source / "cameras.csv").write_text(CAMERAS)
    (source / "query" / "anna.jpg").write_bytes(b"")
    for name in ("00003_c000s0_999", "-1_c000s0_999", "00077_c000s0_9"):
        (source / "bounding_box_test" / f"{name}.jpg").write_bytes(b"no picture")
    for format_ in FORMATS:
        pack_folder(source, folder / format_, format=format_, shard_rows=SHARD_ROWS)
    return folder


@pytest.fixture
def crops(templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / "crops", tmp_path / "crops")


@pytest.fixture
def packed(templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / "parquet", tmp_path / "entire-id")


@pytest.fixture(params=FORMATS)
def packed_any(request: pytest.FixtureRequest, templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / request.param, tmp_path / "entire-id")


def gallery_of(folder: Path) -> list[Shard]:
    """Return the shards of the gallery's Asian part; the junk lies there."""
    return [s for s in read_manifest(folder).shards if (s.split, s.continent) == ("gallery", "asia")]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def inodes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def mend(folder: Path, source: Path, **options: object) -> RepairReport:
    return repair(folder, open_source(source), **options)


def swap(folder: Path) -> None:
    first, second, *_ = gallery_of(folder)
    (folder / first.path).rename(folder / "aside")
    (folder / second.path).rename(folder / first.path)
    (folder / "aside").rename(folder / second.path)


def lose(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def first(folder: Path) -> Shard:
    return gallery_of(folder)[0]


def lose_every_second(folder: Path) -> None:
    for shard in read_manifest(folder).shards[::2]:
        lose(folder, shard.path, shard.meta_path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated shard": lambda folder: truncate(folder / first(folder).path),
    "bit of an image": lambda folder: flip(folder / first(folder).path, 700),
    "bit of the footer": lambda folder: flip(folder / first(folder).path, -20),
    "missing shard": lambda folder: lose(folder, first(folder).path),
    "missing meta": lambda folder: lose(folder, first(folder).meta_path),
    "truncated meta": lambda folder: truncate(folder / first(folder).meta_path),
    "shard and meta": lambda folder: lose(folder, first(folder).path, first(folder).meta_path),
    "bits of shard and meta": lambda folder: [
        flip(folder / p, 100) for p in (first(folder).path, first(folder).meta_path)
    ],
    "swapped shards": swap,
    "cameras and README": lambda folder: lose(folder, "cameras.csv", "README.md"),
    "a split": lambda folder: lose(folder, "data/query", "meta/query", "data/train"),
    "every second shard": lose_every_second,
    "all but the manifest": lambda folder: lose(folder, "data", "meta", "cameras.csv", "README.md"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_broken_files_come_back_and_sound_ones_are_not_touched(
    packed_any: Path, templates: Path, damage: Callable[[Path], object]
) -> None:
    before, sound = tree(packed_any), inodes(packed_any)
    damage(packed_any)
    damaged = tree(packed_any)
    broken = {name for name, data in before.items() if damaged.get(name) != data and (name not in damaged or data)}
    broken = {name for name in broken if not (templates / "parquet" / name).is_dir()}
    report = mend(packed_any, templates / "crops")
    assert tree(packed_any) == before
    assert (set(report.restored), report.unrestored, report.verified.problems) == (broken, (), ())
    assert report.verified.rows == read_manifest(packed_any).num_rows
    after = inodes(packed_any)
    assert {name: after[name] for name in sound.keys() - broken} == {
        name: sound[name] for name in sound.keys() - broken
    }
    assert [path.name for path in packed_any.parent.iterdir()] == ["entire-id"]


def test_nothing_broken_is_nothing_done(packed_any: Path, templates: Path) -> None:
    before = inodes(packed_any)
    report = mend(packed_any, templates / "crops")
    assert (report.restored, report.unrestored, report.verified) == ((), (), verify(packed_any))
    assert inodes(packed_any) == before


@pytest.mark.parametrize("options", [{"quick": True}, {"jobs": 2}, {"decode": True}], ids=str)
def test_every_mode_repairs(packed: Path, templates: Path, options: dict) -> None:
    before = tree(packed)
    one, other, *_ = gallery_of(packed)
    flip(packed / one.path, 700)
    lose(packed, other.path, other.meta_path)
    report = mend(packed, templates / "crops", **options)
    assert report.restored == (one.path, other.path, other.meta_path)
    assert tree(packed) == before


@pytest.mark.parametrize("format_", FORMATS)
def test_crops_that_did_not_decode_are_left_out_again(crops: Path, tmp_path: Path, format_: str) -> None:
    data = image_bytes(5000)
    damaged = data[: data.index(b"\xff\xda") + 14] + b"\xff\xd9"
    for name in ("00002_c000s0_5", "00004_c001s0_5", "-1_c001s0_55"):
        (crops / "bounding_box_test" / f"{name}.jpg").write_bytes(damaged)
    packed = pack_folder(crops, tmp_path / "entire-id", format=format_, shard_rows=SHARD_ROWS, decode=True)
    before = tree(packed)
    lose(packed, "data/gallery", "meta/gallery")
    assert mend(packed, crops).verified.problems == ()
    assert tree(packed) == before


@pytest.mark.parametrize("format_", FORMATS)
def test_a_version_that_followed_another_is_repaired(crops: Path, tmp_path: Path, format_: str) -> None:
    """People lie where the version before had them, and junk where only the meta files tell."""
    options = {"format": format_, "shard_rows": SHARD_ROWS}
    old = pack_folder(crops, tmp_path / "old", **options)
    write_crops(crops, [f"bounding_box_test/{pid:05d}_c000s0_{n}.jpg" for pid in (90, 91, 92) for n in range(4)], 2000)
    write_crops(crops, ["bounding_box_test/-1_c000s0_500.jpg"], 3000)
    for path in crops.glob("*/00001_*"):
        path.unlink()
    packed = pack_folder(crops, tmp_path / "entire-id", version="1.1.0", previous=old, **options)
    before = tree(packed)
    for shard in gallery_of(packed):
        lose(packed, shard.path, shard.meta_path)
        report = mend(packed, crops)
        assert report.unrestored == ()
        assert tree(packed) == before


def test_other_crops_that_came_since_do_no_harm_where_the_meta_file_is_sound(packed: Path, crops: Path) -> None:
    before = tree(packed)
    write_crops(crops, [f"bounding_box_test/{pid:05d}_c000s0_7.jpg" for pid in range(12)], 2000)
    lose(packed, "data")
    assert mend(packed, crops).unrestored == ()
    assert tree(packed) == before


# --- what cannot be restored


def crop_of(folder: Path, shard: Shard) -> str:
    """Return the name of a crop, without its ending, that lies in a shard of the gallery."""
    keys = pq.read_table(folder / shard.meta_path, partitioning=None)["key"].to_pylist()
    return keys[3].removeprefix("gallery/")


def change(path: Path) -> None:
    path.write_bytes(image_bytes(4000))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change, "the source has other bytes or labels for 1 of its crops: 'bounding_box_test/{name}.jpg'"),
        (Path.unlink, "the source lacks 1 of its crops: 'gallery/{name}'"),
        (
            lambda path: path.write_bytes(b""),
            "the source lacks 1 of its crops: 'bounding_box_test/{name}.jpg' (rejected: empty)",
        ),
    ],
    ids=["changed", "gone", "empty"],
)
@pytest.mark.parametrize("lost", ["path", "meta_path"])
def test_a_crop_that_is_not_what_it_was_is_named_and_its_shard_stays_broken(
    packed_any: Path, crops: Path, spoil: Callable[[Path], object], why: str, lost: str
) -> None:
    one, other, *_ = gallery_of(packed_any)
    name = crop_of(packed_any, one)
    flip(packed_any / getattr(one, lost), 100)
    lose(packed_any, other.path)
    before = tree(packed_any)
    spoil(crops / "bounding_box_test" / f"{name}.jpg")
    report = mend(packed_any, crops)
    (unrestored,) = report.unrestored
    assert unrestored.path == getattr(one, lost)
    assert why.format(name=name) in unrestored.why
    assert report.restored == (other.path,)
    assert {problem.where for problem in report.verified.problems if problem.kind is Kind.SHA256} == {unrestored.path}
    after = tree(packed_any)
    del after[other.path]
    assert after == before


def test_another_continent_is_told(packed: Path, crops: Path) -> None:
    (crops / "cameras.csv").write_text(CAMERAS.replace("0,asia", "0,africa"))
    shard = first(packed)
    lose(packed, shard.path, "cameras.csv")
    report = mend(packed, crops)
    assert [one.path for one in report.unrestored] == ["cameras.csv", shard.path]
    assert "the cameras.csv or the crops of the source are not those" in report.unrestored[0].why
    assert "other bytes or labels" in report.unrestored[1].why


def test_people_and_numbers_tell_where_no_sound_file_is_left(packed: Path, crops: Path) -> None:
    shard = next(shard for shard in read_manifest(packed).shards if shard.split == "train")
    lose(packed, shard.path, shard.meta_path)
    paths = sorted((crops / "bounding_box_train").glob(f"{shard.pids[0]:05d}_*"))
    change(paths[0])
    assert "a crop has changed in the source" in mend(packed, crops).unrestored[0].why
    paths[0].unlink()
    why = mend(packed, crops).unrestored[1].why
    assert f"the source gives {shard.rows - 1} crops for it and it held {shard.rows}" in why
    for path in paths[1:]:
        path.unlink()
    assert f"the source lacks people of this shard: train/{shard.pids[0]}" in mend(packed, crops).unrestored[0].why
    shutil.rmtree(crops / "bounding_box_train")
    assert mend(packed, crops).unrestored[0].why == "none of its crops is in the source"


def test_a_shard_of_another_writer_is_not_replaced_by_one_of_ours(packed: Path, templates: Path) -> None:
    """Its manifest holds a digest that these versions cannot bring about."""
    shard = first(packed)
    table = pq.read_table(packed / shard.meta_path, partitioning=None)
    pq.write_table(table, packed / shard.meta_path, compression="none")
    manifest = read_manifest(packed)
    files = tuple(
        FileEntry(e.path, e.rows, (packed / e.path).stat().st_size, file_digest(packed / e.path))
        for e in manifest.files
    )
    (packed / "manifest.json").write_text(replace(manifest, files=files).to_json())
    lose(packed, "README.md", shard.meta_path)
    report = mend(packed, templates / "crops")
    assert report.restored == ("README.md",)
    assert f"another version than entire-id 0.1.0 with pyarrow {pa.__version__}" in report.unrestored[0].why


def test_a_damaged_manifest_is_told_and_nothing_is_done(packed: Path, templates: Path) -> None:
    fields = json.loads((packed / "manifest.json").read_text())
    fields["shards"][0]["rows"] += 1
    (packed / "manifest.json").write_text(json.dumps(fields))
    lose(packed, "data/query")
    before = tree(packed)
    report = mend(packed, templates / "crops")
    assert [one.path for one in report.unrestored] == ["manifest.json"]
    assert [problem.kind for problem in report.verified.problems] == [Kind.MANIFEST]
    assert tree(packed) == before
    lose(packed, "manifest.json")
    with pytest.raises(DatasetNotFoundError):
        mend(packed, templates / "crops")


def test_files_that_nobody_lists_stay_and_are_told(packed: Path, templates: Path) -> None:
    (packed / "notes.txt").write_text("mine")
    lose(packed, first(packed).path)
    report = mend(packed, templates / "crops")
    assert [(problem.kind, problem.where) for problem in report.verified.problems] == [(Kind.UNLISTED, "notes.txt")]
    assert (packed / "notes.txt").read_text() == "mine"


def test_a_readme_that_is_replaced_is_kept_beside_the_folder(packed: Path, templates: Path) -> None:
    before = (packed / "README.md").read_text()
    ours = before.replace("query", "quarry") + "\nThanks to all.\n"
    (packed / "README.md").write_text(ours)
    report = mend(packed, templates / "crops")
    assert (packed / "README.md").read_text() == before
    assert report.old_readme == packed.with_name("entire-id.README.md.old")
    assert report.old_readme.read_text() == ours
    (packed / "README.md").write_text("")
    report = mend(packed, templates / "crops")
    assert "is there already: move that away" in report.unrestored[0].why
    assert (packed / "README.md").read_text() == ""
    lose(packed, "README.md")
    assert mend(packed, templates / "crops").old_readme is None


def test_nothing_is_written_behind_a_link_or_over_a_folder(packed: Path, templates: Path, tmp_path: Path) -> None:
    one, other, *_ = gallery_of(packed)
    lose(packed, one.path, other.meta_path)
    (packed / other.meta_path).mkdir()
    (packed / "data").rename(tmp_path / "elsewhere")
    (packed / "data").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    report = mend(packed, templates / "crops")
    assert {unrestored.path: unrestored.why for unrestored in report.unrestored} == {
        one.path: "it lies behind a link that leads out of the folder",
        other.meta_path: "a folder stands in its place; move that away",
    }
    assert tree(tmp_path / "elsewhere") == before


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_leads_to_is_not_touched(
    packed: Path, templates: Path, tmp_path: Path
) -> None:
    before, shard = tree(packed), first(packed)
    (packed / shard.path).rename(tmp_path / "elsewhere")
    (packed / shard.path).symlink_to(tmp_path / "elsewhere")
    flip(tmp_path / "elsewhere", 100)
    strange = (tmp_path / "elsewhere").read_bytes()
    assert mend(packed, templates / "crops").restored == (shard.path,)
    assert (packed / shard.path).is_file()
    assert not (packed / shard.path).is_symlink()
    assert tree(packed) == before
    assert (tmp_path / "elsewhere").read_bytes() == strange


def test_of_two_repairs_at_once_the_second_is_refused(packed: Path, templates: Path) -> None:
    lose(packed, first(packed).path)
    with work_folder(packed, ".repairing") as work:
        (work / "half").write_bytes(b"x")
        with pytest.raises(OutputExistsError, match="another run is repairing it"):
            mend(packed, templates / "crops")
    assert mend(packed, templates / "crops").verified.problems == ()


def test_a_repair_that_is_interrupted_need_not_check_everything_again(packed: Path, templates: Path) -> None:
    before = tree(packed)
    lose_every_second(packed)
    settle()

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "restoring" and done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        repair(packed, open_source(templates / "crops"), interrupt)
    assert not packed.with_name("entire-id.repairing").exists()
    report = mend(packed, templates / "crops")
    assert report.verified.num_resumed == len(read_manifest(packed).shards) // 2
    assert len(report.restored) == len(read_manifest(packed).shards[::2]) * 2 - 4
    assert tree(packed) == before
    assert [path.name for path in packed.parent.iterdir()] == ["entire-id"]


def test_what_a_killed_repair_left_is_cleared(packed: Path, templates: Path) -> None:
    lose(packed, first(packed).path)
    left = packed.with_name("entire-id.repairing")
    (left / "tree" / "0" / "plain").mkdir(parents=True)
    (left / "tree" / "0" / "plain" / "half").write_bytes(b"x")
    (left / ".unfinished").touch()
    assert mend(packed, templates / "crops").verified.problems == ()
    assert not left.exists()


# --- the command


def run_verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", "verify", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_command_exits_with_0_once_all_is_sound_and_with_3_else(packed: Path, crops: Path) -> None:
    one, other, *_ = gallery_of(packed)
    flip(packed / one.path, 700)
    done = run_verify(packed, "--repair", crops)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"restored {one.path}\n" in done.stderr
    assert "0 problems" in done.stderr
    change(crops / "bounding_box_test" / f"{crop_of(packed, other)}.jpg")
    lose(packed, other.path)
    done = run_verify(packed, "--repair", crops, "--json")
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["restored"] == []
    assert [unrestored["path"] for unrestored in report["unrestored"]] == [other.path]
    assert f"could not restore {other.path}: the source has other bytes" in done.stderr
    assert f"next: pack a new version: entire-id pack {crops} NEW" in done.stderr


def test_options_of_a_source_without_one_are_wrong_usage(packed: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(packed), "--cameras", "cameras.csv"])
    assert done.exit_code == 2
    assert "--repair" in done.output
