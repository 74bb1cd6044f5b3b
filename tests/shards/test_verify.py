"""Verifying: a sound data set has no problem, and each damage is found, named and located."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from entire_id.errors import DatasetNotFoundError
from entire_id.schema import arrow_schema, meta_columns
from entire_id.shards import parquet, tar
from entire_id.shards.configs import render_readme
from entire_id.shards.manifest import FileEntry, Manifest, Shard, file_digest, read_manifest
from entire_id.shards.parquet import ParquetShard
from entire_id.shards.records import Crops
from entire_id.shards.tar import TarShard
from entire_id.shards.verify import Kind, VerifyReport, verify

from builders import CAMERAS, crop_names, image_bytes, pack_folder, write_crops

FORMATS = ["parquet", "webdataset"]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crops of conftest.py and what packing makes of them, once: every test damages a copy."""
    folder = tmp_path_factory.mktemp("templates")
    source = write_crops(folder / "crops", crop_names())
    (source / "cameras.csv").write_text(CAMERAS)
    for format_ in FORMATS:
        pack_folder(source, folder / format_, format=format_)
    return folder


@pytest.fixture
def crops(templates: Path, tmp_path: Path) -> Path:
    """A copy of the crops."""
    return shutil.copytree(templates / "crops", tmp_path / "crops")


@pytest.fixture
def packed(templates: Path, tmp_path: Path) -> Path:
    """A copy of the crops packed as Parquet."""
    return shutil.copytree(templates / "parquet", tmp_path / "entire-id")


@pytest.fixture
def packed_tar(templates: Path, tmp_path: Path) -> Path:
    """A copy of the crops packed as WebDataset."""
    return shutil.copytree(templates / "webdataset", tmp_path / "entire-id")


@pytest.fixture(params=FORMATS)
def packed_any(request: pytest.FixtureRequest, templates: Path, tmp_path: Path) -> Path:
    """A copy of either."""
    return shutil.copytree(templates / request.param, tmp_path / "entire-id")


def found(folder: Path) -> set[tuple[Kind, str]]:
    """Return the kind and the place of every problem."""
    report = verify(folder)
    assert all(problem.detail for problem in report.problems)
    return {(problem.kind, problem.where) for problem in report.problems}


def kinds(folder: Path) -> set[Kind]:
    return {kind for kind, _ in found(folder)}


def gallery_of(folder: Path) -> Shard:
    """Return the gallery's Asian shard: 16 rows."""
    return next(s for s in read_manifest(folder).shards if (s.split, s.continent) == ("gallery", "asia"))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest and the README that goes with it."""
    (folder / "manifest.json").write_text(manifest.to_json())
    (folder / "README.md").write_text(render_readme(manifest))


def reseal(folder: Path, manifest: Manifest | None = None) -> None:
    """Make manifest and README agree with the files again, as somebody who tampers would."""
    manifest = manifest or read_manifest(folder)
    files = [
        FileEntry(e.path, e.rows, (folder / e.path).stat().st_size, file_digest(folder / e.path))
        for e in manifest.files
    ]
    write_manifest(folder, replace(manifest, files=tuple(files)))


def change_shard(folder: Path, old: Shard, **changes: object) -> None:
    """Let the manifest say something else of one shard, and reseal."""
    manifest = read_manifest(folder)
    reseal(folder, replace(manifest, shards=tuple(replace(s, **changes) if s == old else s for s in manifest.shards)))


def edit_meta(folder: Path, shard: Shard, edit: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(folder / shard.meta_path, partitioning=None)
    pq.write_table(edit(table).replace_schema_metadata(table.schema.metadata), folder / shard.meta_path)
    reseal(folder)


def set_value(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    return table.set_column(place, table.field(column), pa.array(values, table.field(column).type))


def forge(folder: Path, shard: Shard, edit: Callable[[Crops], Crops]) -> None:
    """Write a shard anew with other rows, and meta, manifest and README to fit: only the rows themselves are wrong."""
    format_ = read_manifest(folder).format
    path, meta_path = folder / shard.path, folder / shard.meta_path
    [(images, names, labels)] = {"parquet": parquet, "webdataset": tar}[format_].read_crops(path)
    crops = edit(Crops(images, names, labels.combine_chunks()))
    writer = {"parquet": ParquetShard, "webdataset": TarShard}[format_](path)
    writer.write(crops)
    spans = writer.close()
    places = [pa.array([shard.path] * len(crops)), pa.array(spans.offset), pa.array(spans.length)]
    meta = pa.Table.from_arrays([*crops.labels.columns, *places], schema=arrow_schema(meta_columns()))
    parquet.write_meta(meta_path, meta)
    pids = tuple(sorted({pid for pid in meta["pid"].to_pylist() if pid >= 0}))
    manifest = read_manifest(folder)
    rows = {shard.path: len(crops), shard.meta_path: len(crops)}
    manifest = replace(manifest, files=tuple(replace(e, rows=rows.get(e.path, e.rows)) for e in manifest.files))
    write_manifest(folder, manifest)
    totals = {"rows": len(crops), "num_bytes": crops.num_bytes, "image_bytes": int(spans.length.sum())}
    change_shard(folder, shard, row_groups=(len(crops),), pids=pids, **totals)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def row_of(folder: Path, shard: Shard, row: int) -> dict:
    return pq.read_table(folder / shard.meta_path, partitioning=None).slice(row, 1).to_pylist()[0]


# --- sound


def test_a_sound_data_set_has_no_problem(packed_any: Path) -> None:
    assert verify(packed_any) == VerifyReport((), 36, 0, 0, 0)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_data_set_of_everything_has_no_problem(tmp_path: Path, format_: str) -> None:
    names = [
        *crop_names(5),
        *[f"bounding_box_train/{pid:05d}_c00{camid}s0_1.jpg" for pid in range(5) for camid in (0, 2)],
        "bounding_box_test/-1_c001s0_5.jpg",
        "bounding_box_test/deep er/a.b/Ünïcode/00003_c001s0_7.png",
        "bounding_box_test/" + "long" * 40 + "/00003_c001s0_7.jpg",
    ]
    source = write_crops(tmp_path / "source", names)
    (source / "cameras.csv").write_text("camid,continent\n0,asia\n1,asia_minor\n")
    folder = pack_folder(source, tmp_path / "entire-id", format=format_, shard_rows=4)
    assert verify(folder).problems == ()
    assert verify(folder).rows == len(names)


def test_a_resealed_data_set_has_no_problem(packed_any: Path) -> None:
    """The tests below reseal what they damage: that alone must not be a problem."""
    reseal(packed_any)
    assert found(packed_any) == set()
    edit = gallery_of(packed_any)
    edit_meta(packed_any, edit, lambda table: table)
    forge(packed_any, gallery_of(packed_any), lambda crops: crops)
    assert found(packed_any) == set()


def test_real_crops_have_no_problem(real_crops: Path, tmp_path: Path) -> None:
    report = verify(pack_folder(real_crops, tmp_path / "entire-id"))
    assert (report.problems, report.rows) == ((), 402)


def test_progress_ends_at_the_number_of_rows_and_tells_of_bytes_and_problems(packed: Path) -> None:
    (packed / gallery_of(packed).path).unlink()
    calls: list[tuple[str, int, int, str]] = []
    verify(packed, lambda *call: calls.append(call))
    assert [done for _, done, *_ in calls] == sorted({done for _, done, *_ in calls})
    assert calls[-1] == ("verifying", 36, 36, "0.0 GB, 1 problems")


def test_verifying_changes_nothing(packed_any: Path) -> None:
    before = {path: path.read_bytes() for path in packed_any.rglob("*") if path.is_file()}
    verify(packed_any)
    assert {path: path.read_bytes() for path in packed_any.rglob("*") if path.is_file()} == before


def test_no_data_set_is_an_error_and_no_problem(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError):
        verify(tmp_path)


# --- files


def test_a_flipped_bit_in_an_image_is_found_in_the_file_and_in_the_row(packed_any: Path) -> None:
    shard = gallery_of(packed_any)
    row = row_of(packed_any, shard, 5)
    flip(packed_any / shard.path, row["offset"] + row["length"] // 2)
    assert found(packed_any) == {(Kind.SHA256, shard.path), (Kind.IMAGE, row["key"])}
    reseal(packed_any)
    assert found(packed_any) == {(Kind.IMAGE, row["key"])}


@pytest.mark.parametrize("kind", ["path", "meta_path"])
def test_a_flipped_bit_anywhere_is_found(packed_any: Path, kind: str) -> None:
    path = getattr(gallery_of(packed_any), kind)
    sound = (packed_any / path).read_bytes()
    for position in range(0, len(sound), max(1, len(sound) // 5)):
        flip(packed_any / path, position)
        assert (Kind.SHA256, path) in found(packed_any), position
        (packed_any / path).write_bytes(sound)


@pytest.mark.parametrize("position", [-2, -7, -20, -200])
def test_a_flipped_bit_in_the_footer_is_found(packed: Path, position: int) -> None:
    """The last 8 bytes are the footer's length and the magic number."""
    for path in (gallery_of(packed).path, gallery_of(packed).meta_path):
        flip(packed / path, position)
        assert (Kind.SHA256, path) in found(packed)


def test_shards_that_are_swapped_are_found(packed_any: Path) -> None:
    one, other = (shard for shard in read_manifest(packed_any).shards if shard.split == "gallery")
    for kind in ("path", "meta_path"):
        paths = [getattr(shard, kind) for shard in (one, other)]
        (packed_any / paths[0]).rename(packed_any / "aside")
        (packed_any / paths[1]).rename(packed_any / paths[0])
        (packed_any / "aside").rename(packed_any / paths[1])
        assert set(paths) <= {where for kind, where in found(packed_any) if kind in (Kind.SIZE, Kind.SHA256)}


@pytest.mark.parametrize("kind", ["path", "meta_path"])
def test_a_truncated_file_is_found(packed_any: Path, kind: str) -> None:
    path = getattr(gallery_of(packed_any), kind)
    (packed_any / path).write_bytes((packed_any / path).read_bytes()[:-2000])
    problems = found(packed_any)
    assert (Kind.SIZE, path) in problems
    assert {where for _, where in problems} == {path}
    assert {other for other, _ in problems} & {Kind.UNREADABLE, Kind.SCHEMA}


@pytest.mark.parametrize("kind", ["path", "meta_path"])
def test_a_missing_file_is_found_and_named_once(packed_any: Path, kind: str) -> None:
    path = getattr(gallery_of(packed_any), kind)
    (packed_any / path).unlink()
    assert found(packed_any) == {(Kind.MISSING, path)}


def test_missing_cameras_are_found(packed_any: Path) -> None:
    (packed_any / "cameras.csv").unlink()
    assert found(packed_any) == {(Kind.MISSING, "cameras.csv")}


@pytest.mark.parametrize(
    "name", ["notes.txt", "entire-id.py", ".huggingface.yaml", "data/gallery/asia-00009.parquet", "data/new/x.parquet"]
)
def test_a_file_that_nobody_lists_is_found(packed: Path, name: str) -> None:
    """Another shard would be loaded, a script of the folder's name stops `datasets`, the YAML overrides the README."""
    (packed / name).parent.mkdir(exist_ok=True)
    (packed / name).write_bytes(b"x")
    assert found(packed) == {(Kind.UNLISTED, name)}


def test_an_unlisted_name_that_is_not_utf8_is_found(packed: Path) -> None:
    (packed / "\udcff.txt").write_bytes(b"x")
    assert kinds(packed) == {Kind.UNLISTED}


@pytest.mark.parametrize("kind", ["path", "meta_path"])
def test_a_link_in_the_place_of_a_file_is_found(packed_any: Path, tmp_path: Path, kind: str) -> None:
    path = getattr(gallery_of(packed_any), kind)
    (packed_any / path).rename(tmp_path / "elsewhere")
    (packed_any / path).symlink_to(tmp_path / "elsewhere")
    assert (Kind.MISSING, path) in found(packed_any)


def test_a_link_in_the_place_of_a_folder_is_found(packed: Path, tmp_path: Path) -> None:
    (packed / "data").rename(tmp_path / "elsewhere")
    (packed / "data").symlink_to(tmp_path / "elsewhere")
    assert found(packed) != set()


def test_a_link_to_nothing_is_found(packed: Path) -> None:
    (packed / "notes").symlink_to("nowhere")
    assert found(packed) == {(Kind.UNLISTED, "notes")}


def test_the_shards_of_two_data_sets_do_not_mix(packed: Path, tmp_path: Path) -> None:
    other = pack_folder(write_crops(tmp_path / "source", crop_names(), first_seed=1000), tmp_path / "other")
    shard = gallery_of(packed)
    stranger = next(s for s in read_manifest(other).shards if s.split == "gallery")
    shutil.copy(other / stranger.path, packed / shard.path)
    assert {Kind.SIZE, Kind.IMAGE} <= kinds(packed) or {Kind.SIZE, Kind.META} <= kinds(packed)


# --- the manifest


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: fields["files"][0].update(sha256="0" * 64),
        lambda fields: fields["files"][0].update(path="../cameras.csv"),
        lambda fields: fields.update(content_sha256="0" * 64),
        lambda fields: fields.update(schema_version=99),
        lambda fields: fields.clear(),
        lambda fields: fields.update(format="zip"),
        lambda fields: fields["shards"][0].update(split="dev"),
        lambda fields: fields["shards"][0].update(rows="12"),
        lambda fields: fields["totals"]["gallery"].update(rows=7),
        lambda fields: fields["totals"].clear(),
    ],
    ids=["sha256", "path", "digest", "version", "empty", "format", "split", "type", "totals", "no-totals"],
)
def test_a_manifest_that_cannot_be_right_is_one_problem(packed: Path, edit: Callable[[dict], object]) -> None:
    fields = json.loads((packed / "manifest.json").read_text())
    edit(fields)
    (packed / "manifest.json").write_text(json.dumps(fields))
    assert found(packed) == {(Kind.MANIFEST, "manifest.json")}


@pytest.mark.parametrize("field", ["rows", "image_bytes"])
def test_numbers_of_a_shard_that_the_manifest_gets_wrong_are_found(packed: Path, field: str) -> None:
    """README and manifest agree with each other, and not with the files."""
    shard = gallery_of(packed)
    *others, last = shard.row_groups
    groups = {"row_groups": (*others, last + 1)} if field == "rows" else {}
    change_shard(packed, shard, **{field: getattr(shard, field) + 1}, **groups)
    assert found(packed) != set()
    if field == "rows":
        assert Kind.ROWS in kinds(packed)


def test_the_rows_of_a_listed_file_are_checked(packed: Path) -> None:
    manifest = read_manifest(packed)
    shard = gallery_of(packed)
    for victim in (entry for entry in manifest.files if entry.path in (shard.path, shard.meta_path)):
        files = tuple(replace(e, rows=e.rows + 1) if e == victim else e for e in manifest.files)
        write_manifest(packed, replace(manifest, files=files))
        assert (Kind.ROWS, victim.path) in found(packed)


def test_a_size_that_the_manifest_gets_wrong_is_found(packed: Path) -> None:
    manifest = read_manifest(packed)
    first, *others = manifest.files
    write_manifest(packed, replace(manifest, files=(replace(first, bytes=first.bytes + 1), *others)))
    assert found(packed) == {(Kind.SIZE, first.path)}


@pytest.mark.parametrize("pids", [(), (0, 1, 2), (0, 1, 2, 3, 4)])
def test_people_that_the_manifest_gets_wrong_are_found(packed: Path, pids: tuple[int, ...]) -> None:
    """An erasure looks people up there."""
    shard = gallery_of(packed)
    change_shard(packed, shard, pids=pids)
    assert found(packed) == {(Kind.PLACE, shard.meta_path)}


def test_a_shard_that_the_manifest_leaves_out_is_found(packed: Path) -> None:
    """Its files are listed, and a pattern of the README may load them, but no reader of the manifest sees them."""
    manifest = read_manifest(packed)
    write_manifest(packed, replace(manifest, shards=manifest.shards[1:]))
    (problem,) = verify(packed).problems
    assert problem.kind is Kind.MANIFEST
    assert f"{manifest.shards[0].path!r} is a file of no shard" in problem.detail


def test_a_shard_that_stands_in_the_manifest_twice_is_found(packed: Path) -> None:
    manifest = read_manifest(packed)
    write_manifest(packed, replace(manifest, shards=(*manifest.shards, manifest.shards[0])))
    assert kinds(packed) & {Kind.KEY, Kind.MANIFEST}


def test_a_manifest_without_shards_is_found(packed: Path) -> None:
    (packed / "manifest.json").write_text(replace(read_manifest(packed), shards=()).to_json())
    assert found(packed) != set()


# --- the README


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("path: data/query/*.parquet", "path: data/gallery/*.parquet"),
        ("version: 1.0.0", "version: 1.0.1"),
        ("content sha256:", "content sha256:0"),
        ("num_examples: 24", "num_examples: 23"),
        ("dtype: int64", "dtype: int32"),
        ("config_name: test", "config_name: exam"),
        ("configs:", "config:"),
        ("dataset_info:", "info:"),
        ("---\n", "--\n"),
        ("configs:\n", "configs: [\n"),
    ],
)
def test_an_edit_of_the_readme_that_changes_what_is_loaded_is_found(packed: Path, old: str, new: str) -> None:
    text = (packed / "README.md").read_text()
    assert old in text
    (packed / "README.md").write_text(text.replace(old, new))
    assert found(packed) == {(Kind.README, "README.md")}


@pytest.mark.parametrize("before", ["A word first.\n", "---\nlicense: mit\n---\n"])
def test_a_readme_whose_yaml_is_not_at_its_start_is_found(packed: Path, before: str) -> None:
    """`datasets` reads YAML at the very start and nowhere else: queries and gallery would vanish without a word."""
    (packed / "README.md").write_text(before + (packed / "README.md").read_text())
    assert found(packed) == {(Kind.README, "README.md")}


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"# A title\n", b"---\n[1, 2]\n---\n"])
def test_a_readme_that_holds_no_configs_is_found(packed: Path, data: bytes) -> None:
    (packed / "README.md").write_bytes(data)
    assert found(packed) == {(Kind.README, "README.md")}


def test_a_missing_readme_is_found(packed: Path) -> None:
    (packed / "README.md").unlink()
    assert found(packed) == {(Kind.MISSING, "README.md")}


def test_prose_and_other_fields_of_the_readme_belong_to_the_owner(packed: Path) -> None:
    text = (packed / "README.md").read_text()
    (packed / "README.md").write_text(text.replace("---\n", "---\nlicense: other\n", 1) + "\n## Thanks\n")
    assert found(packed) == set()


# --- meta against shard


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("offset", lambda value: value + 1),
        ("offset", lambda value: value - 1),
        ("offset", lambda value: 0),
        ("offset", lambda value: -1),
        ("offset", lambda value: 2**40),
        ("length", lambda value: value - 1),
        ("length", lambda value: value + 1),
        ("length", lambda value: 0),
        ("length", lambda value: -1),
    ],
    ids=["later", "earlier", "start", "negative", "behind", "short", "long", "none", "negative-length"],
)
def test_a_place_that_meta_gets_wrong_is_found(packed_any: Path, column: str, change: Callable[[int], int]) -> None:
    shard = gallery_of(packed_any)
    row = row_of(packed_any, shard, 3)
    edit_meta(packed_any, shard, lambda table: set_value(table, column, 3, change(row[column])))
    assert found(packed_any) == {(Kind.OFFSET, row["key"])}


def test_places_of_two_rows_that_are_swapped_are_found(packed_any: Path) -> None:
    shard = gallery_of(packed_any)
    one, other = (row_of(packed_any, shard, row) for row in (0, 1))

    def swap(table: pa.Table) -> pa.Table:
        for column in ("offset", "length"):
            table = set_value(set_value(table, column, 0, other[column]), column, 1, one[column])
        return table

    edit_meta(packed_any, shard, swap)
    assert found(packed_any) == {(Kind.OFFSET, one["key"]), (Kind.OFFSET, other["key"])}


@pytest.mark.parametrize(("column", "value"), [("camid", 5), ("seq", 9), ("frame", 2**40), ("width", 1), ("height", 1)])
def test_a_label_that_meta_gets_wrong_is_found(packed_any: Path, column: str, value: int) -> None:
    shard = gallery_of(packed_any)
    row = row_of(packed_any, shard, 2)
    edit_meta(packed_any, shard, lambda table: set_value(table, column, 2, value))
    assert found(packed_any) == {(Kind.META, row["key"])}


def test_a_person_that_meta_gets_wrong_is_found(packed: Path) -> None:
    shard = gallery_of(packed)
    row = row_of(packed, shard, 2)
    edit_meta(packed, shard, lambda table: set_value(table, "pid", 2, 77))
    assert found(packed) == {(Kind.META, row["key"]), (Kind.PLACE, shard.meta_path)}


@pytest.mark.parametrize(
    ("column", "value"), [("continent", "europe"), ("shard", "data/gallery/europe-00000.parquet"), ("key", "query/x")]
)
def test_a_row_that_claims_to_lie_elsewhere_is_found(packed: Path, column: str, value: str) -> None:
    shard = gallery_of(packed)
    edit_meta(packed, shard, lambda table: set_value(table, column, 2, value))
    assert Kind.PLACE in kinds(packed)


def test_a_checksum_that_meta_gets_wrong_is_found(packed_any: Path) -> None:
    shard = gallery_of(packed_any)
    row = row_of(packed_any, shard, 2)
    edit_meta(packed_any, shard, lambda table: set_value(table, "xxh3", 2, "0" * 16))
    assert (Kind.IMAGE, row["key"]) in found(packed_any)


@pytest.mark.parametrize("column", [column.name for column in meta_columns()])
def test_a_null_is_found(packed: Path, column: str) -> None:
    shard = gallery_of(packed)
    edit_meta(packed, shard, lambda table: set_value(table, column, 2, None))
    assert (Kind.SCHEMA, shard.meta_path) in found(packed)


@pytest.mark.parametrize("edit", [lambda t: t.slice(1), lambda t: t.slice(0, 15), lambda t: pa.concat_tables([t, t])])
def test_another_number_of_rows_in_meta_is_found(packed: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    shard = gallery_of(packed)
    edit_meta(packed, shard, edit)
    assert (Kind.ROWS, shard.meta_path) in found(packed)


def test_another_order_of_rows_in_meta_is_found(packed: Path) -> None:
    edit_meta(packed, gallery_of(packed), lambda table: table.take(pa.array(range(15, -1, -1))))
    assert {Kind.META} <= kinds(packed)


@pytest.mark.parametrize(
    "edit",
    [
        lambda table: table.drop_columns("frame"),
        lambda table: table.append_column("colour", pa.nulls(16, pa.string())),
        lambda table: table.set_column(1, "pid", table["pid"].cast(pa.int64())),
        lambda table: table.rename_columns(["name", *table.column_names[1:]]),
    ],
    ids=["missing", "more", "type", "name"],
)
def test_other_columns_in_meta_are_found(packed: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    shard = gallery_of(packed)
    edit_meta(packed, shard, edit)
    assert found(packed) == {(Kind.SCHEMA, shard.meta_path)}


def test_row_groups_that_the_manifest_gets_wrong_are_found(packed: Path) -> None:
    shard = gallery_of(packed)
    change_shard(packed, shard, row_groups=(8, 8))
    assert found(packed) == {(Kind.ROWS, shard.path)}


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"data_page_version": "2.0"}], ids=str)
def test_a_shard_that_another_tool_wrote_anew_is_found(packed: Path, options: dict) -> None:
    """The rows are the same, the bytes lie elsewhere: readers by offset would get rubbish."""
    shard = gallery_of(packed)
    pq.write_table(pq.read_table(packed / shard.path, partitioning=None), packed / shard.path, **options)
    assert kinds(packed) == {Kind.SIZE, Kind.OFFSET}
    reseal(packed)
    assert kinds(packed) == {Kind.OFFSET}


def test_other_row_groups_in_a_shard_are_found(packed: Path) -> None:
    shard = gallery_of(packed)
    table = pq.read_table(packed / shard.path, partitioning=None)
    pq.write_table(table, packed / shard.path, row_group_size=4)
    reseal(packed)
    assert (Kind.ROWS, shard.path) in found(packed)


@pytest.mark.parametrize(
    "edit",
    [
        lambda table: table.drop_columns("frame"),
        lambda table: table.append_column("colour", pa.nulls(16, pa.string())),
        lambda table: table.set_column(2, "pid", table["pid"].cast(pa.int64())),
    ],
    ids=["missing", "more", "type"],
)
def test_other_columns_in_a_shard_are_found(packed: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    shard = gallery_of(packed)
    pq.write_table(edit(pq.read_table(packed / shard.path, partitioning=None)), packed / shard.path)
    reseal(packed)
    assert found(packed) == {(Kind.SCHEMA, shard.path)}


def test_a_null_image_is_found(packed: Path) -> None:
    shard = gallery_of(packed)

    def lose(table: pa.Table) -> pa.Table:
        return set_value(table, "image", 4, {"bytes": None, "path": "x.jpg"})

    pq.write_table(lose(pq.read_table(packed / shard.path, partitioning=None)), packed / shard.path)
    reseal(packed)
    assert (Kind.IMAGE, row_of(packed, shard, 4)["key"]) in found(packed)


# --- tar alone


def rewrite_tar(folder: Path, edit: Callable[[list[tuple[str, bytes]]], None]) -> Shard:
    """Write the Asian gallery's tar with other members, and reseal."""
    shard = gallery_of(folder)
    with tarfile.open(folder / shard.path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    edit(members)
    with tarfile.open(folder / shard.path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    reseal(folder)
    return shard


@pytest.mark.parametrize("labels", [b"", b"{", b"{}", b"[]", b"null", b"7", b'"x"', b"\xff"])
def test_labels_in_a_tar_that_are_none_are_found(packed_tar: Path, labels: bytes) -> None:
    def spoil(members: list[tuple[str, bytes]]) -> None:
        members[5] = (members[5][0], labels)

    shard = rewrite_tar(packed_tar, spoil)
    assert any(where == shard.path or where.startswith("gallery/") for _, where in found(packed_tar))


def test_a_label_in_a_tar_of_another_type_is_found(packed_tar: Path) -> None:
    def spoil(members: list[tuple[str, bytes]]) -> None:
        members[5] = (members[5][0], json.dumps(json.loads(members[5][1]) | {"pid": "three"}).encode())

    rewrite_tar(packed_tar, spoil)
    assert kinds(packed_tar) & {Kind.UNREADABLE, Kind.META, Kind.SCHEMA}


def test_a_member_whose_name_is_not_its_key_is_found(packed_tar: Path) -> None:
    """webdataset takes the key from the member's name, this package from the labels."""

    def rename(members: list[tuple[str, bytes]]) -> None:
        for place, ending in ((4, ".jpg"), (5, ".json")):
            members[place] = ("gallery/99999_c000s0_1" + ending, members[place][1])

    rewrite_tar(packed_tar, rename)
    shard = gallery_of(packed_tar)
    # The name has as many letters as before, so that every byte lies where it lay.
    problems = found(packed_tar)
    assert {where for _, where in problems} & {row_of(packed_tar, shard, 2)["key"], shard.path}
    assert Kind.OFFSET not in {kind for kind, _ in problems}


def test_members_without_a_partner_are_found(packed_tar: Path) -> None:
    shard = rewrite_tar(packed_tar, lambda members: members.pop(5) and None)
    assert (Kind.UNREADABLE, shard.path) in found(packed_tar)


def test_a_row_that_a_tar_lacks_is_found(packed_tar: Path) -> None:
    def drop(members: list[tuple[str, bytes]]) -> None:
        del members[-2:]

    shard = rewrite_tar(packed_tar, drop)
    assert (Kind.ROWS, shard.path) in found(packed_tar)


# --- the rules of the set


def double(crops: Crops) -> Crops:
    """Append the first row once more, with another picture."""
    labels = crops.labels.to_pylist()
    picture = image_bytes(777)
    twin = labels[0] | {"xxh3": xxhash.xxh3_64_hexdigest(picture)}
    table = pa.Table.from_pylist([*labels, twin], crops.labels.schema).combine_chunks()
    return Crops([*crops.images, picture], [*crops.names, crops.names[0]], table)


def test_a_key_that_two_rows_have_is_found(packed_any: Path) -> None:
    shard = gallery_of(packed_any)
    key = row_of(packed_any, shard, 0)["key"]
    forge(packed_any, shard, double)
    assert found(packed_any) == {(Kind.KEY, key)}


def relabel(column: str, value: object) -> Callable[[Crops], Crops]:
    return lambda crops: Crops(crops.images, crops.names, set_value(crops.labels, column, 0, value).combine_chunks())


@pytest.mark.parametrize(("column", "value"), [("continent", "europe"), ("key", "query/somebody")])
def test_a_row_in_a_shard_of_another_split_or_continent_is_found(packed_any: Path, column: str, value: str) -> None:
    shard = gallery_of(packed_any)
    forge(packed_any, shard, relabel(column, value))
    assert kinds(packed_any) == {Kind.PLACE}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_person_in_two_shards_is_found(crops: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format=format_, shard_rows=8)
    first, second = (s for s in read_manifest(folder).shards if (s.split, s.continent) == ("gallery", "asia"))
    forge(folder, second, relabel("pid", first.pids[0]))
    assert found(folder) == {(Kind.PLACE, second.path)}


@pytest.mark.parametrize("format_", FORMATS)
def test_an_image_in_both_train_and_test_is_found(tmp_path: Path, format_: str) -> None:
    names = [*crop_names(), *[f"bounding_box_train/{pid:05d}_c000s0_1.jpg" for pid in (7, 8)]]
    source = write_crops(tmp_path / "source", names)
    leaked = source / "bounding_box_test" / "00002_c001s0_760490.jpg"
    shutil.copy(leaked, source / "bounding_box_train" / "00007_c000s0_1.jpg")
    folder = pack_folder(source, tmp_path / "entire-id", format=format_)
    assert found(folder) == {(Kind.LEAK, "gallery/00002_c001s0_760490")}


def test_an_image_in_query_and_gallery_is_a_duplicate_and_no_leak(crops: Path, tmp_path: Path) -> None:
    shutil.copy(crops / "query/00000_c000s0_760487.jpg", crops / "bounding_box_test/00000_c001s0_9.jpg")
    shutil.copy(crops / "query/00000_c000s0_760487.jpg", crops / "bounding_box_test/00001_c001s0_9.jpg")
    report = verify(pack_folder(crops, tmp_path / "entire-id"))
    assert report.problems == ()
    assert report.duplicate_images == 2


def test_equal_numbers_in_both_parts_are_counted_and_no_problem(tmp_path: Path) -> None:
    names = [*crop_names(3), *[f"bounding_box_train/{pid:05d}_c000s0_1.jpg" for pid in (0, 2, 9)]]
    names += ["bounding_box_train/-1_c000s0_1.jpg", "bounding_box_test/-1_c000s0_1.jpg"]
    report = verify(pack_folder(write_crops(tmp_path / "source", names), tmp_path / "entire-id"))
    assert report.problems == ()
    assert report.shared_pids == 2  # junk is nobody


@pytest.mark.parametrize(
    ("gallery", "unscored"),
    [
        (["00001_c002s0_1"], 0),
        (["00001_c001s0_1"], 1),  # its own camera alone
        (["00001_c001s0_1", "00001_c002s0_1"], 0),
        (["00002_c002s0_1"], 1),  # somebody else
        (["-1_c002s0_1"], 1),
        ([], 1),
    ],
)
def test_queries_that_no_score_counts_are_counted(tmp_path: Path, gallery: list[str], unscored: int) -> None:
    names = ["query/00001_c001s0_0.jpg", *[f"bounding_box_test/{name}.jpg" for name in gallery]]
    names += ["query/00000_c000s0_0.jpg", "bounding_box_test/00000_c003s0_0.jpg"]
    names += ["bounding_box_train/00001_c003s0_0.jpg"]  # another person of that number
    report = verify(pack_folder(write_crops(tmp_path / "source", names), tmp_path / "entire-id"))
    assert report.problems == ()
    assert report.queries_without_positive == unscored


def test_many_damages_are_all_found(packed_any: Path) -> None:
    manifest = read_manifest(packed_any)
    one, other, *_ = manifest.shards
    row = row_of(packed_any, one, 1)
    flip(packed_any / one.path, row["offset"] + 30)
    (packed_any / other.path).unlink()
    (packed_any / "notes.txt").touch()
    (packed_any / "README.md").unlink()
    assert found(packed_any) == {
        (Kind.SHA256, one.path),
        (Kind.IMAGE, row["key"]),
        (Kind.MISSING, other.path),
        (Kind.UNLISTED, "notes.txt"),
        (Kind.MISSING, "README.md"),
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_two_jobs_find_what_one_finds_in_the_same_order(crops: Path, tmp_path: Path, format_: str) -> None:
    shutil.copytree(crops / "bounding_box_test", crops / "bounding_box_train")  # every image leaks
    folder = pack_folder(crops, tmp_path / "entire-id", format=format_, shard_rows=8)
    one, other, another, *_, last = read_manifest(folder).shards
    flip(folder / one.path, 700)
    (folder / other.path).unlink()
    (folder / another.meta_path).write_bytes((folder / last.meta_path).read_bytes())
    os.truncate(folder / last.path, 1000)
    report = verify(folder)
    assert {Kind.SHA256, Kind.IMAGE, Kind.MISSING, Kind.LEAK, Kind.KEY} <= {problem.kind for problem in report.problems}
    calls: list[int] = []
    assert verify(folder, lambda stage, done, total, note: calls.append(done), jobs=2) == report
    assert calls == sorted(calls)
    assert calls[-1] == 36 + 24


# --- the command


def run_verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("entire-id")), "verify", *arguments]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "200"}  # as on any ordinary terminal
    return subprocess.run(command, check=False, capture_output=True, encoding="utf-8", errors="replace", env=strict)


def test_the_command_exits_with_0_for_a_sound_data_set(packed: Path) -> None:
    done = run_verify(str(packed), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "problems": [],
        "rows": 36,
        "queries_without_positive": 0,
        "shared_pids": 0,
        "duplicate_images": 0,
    }
    assert "36 rows" in done.stderr


def test_the_command_exits_with_3_and_lists_the_problems(packed: Path) -> None:
    """One of them is a name that no terminal can print."""
    (packed / "notes [red].txt").touch()
    (packed / "\udcff.txt").touch()
    done = run_verify(str(packed))
    assert done.returncode == 3, done.stderr
    assert "notes [red].txt" in done.stdout
    assert "unlisted" in done.stdout
    assert "2 problems" in done.stderr
    as_json = run_verify(str(packed), "--json")
    assert as_json.returncode == 3, as_json.stderr
    assert {problem["kind"] for problem in json.loads(as_json.stdout)["problems"]} == {"unlisted"}


def test_the_command_exits_with_1_where_there_is_no_data_set(tmp_path: Path) -> None:
    done = run_verify(str(tmp_path))
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_quick_finds_what_digests_tell_and_does_not_look_into_shards(packed_any: Path) -> None:
    assert verify(packed_any, quick=True) == verify(packed_any)
    shard = packed_any / read_manifest(packed_any).shards[0].path
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert [problem.kind for problem in verify(packed_any, quick=True).problems] == [Kind.SHA256]


def test_decode_finds_an_image_that_does_not_decode(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "crops", crop_names(people=1))
    data = image_bytes(1)
    scan = data.index(b"\xff\xda") + 14
    (source / "query" / "00000_c021s0_760487.jpg").write_bytes(data[:scan] + b"\xff\xd9")
    packed = pack_folder(source, tmp_path / "entire-id")
    assert not verify(packed).problems
    (problem,) = verify(packed, decode=True).problems
    assert (problem.kind, problem.where) == (Kind.IMAGE, "query/00000_c021s0_760487")
