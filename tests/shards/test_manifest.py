"""manifest.json: what it says, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.errors import DatasetNotFoundError, EntireIdError, ManifestError
from entire_id.records import SPLITS
from entire_id.shards.manifest import (
    FileEntry,
    Manifest,
    Shard,
    content_digest,
    file_digest,
    read_manifest,
)


def shard_of(split: str, continent: str, pids: tuple[int, ...], number: int = 0, rows: int = 10) -> Shard:
    stem = f"{split}/{continent}-{number:05d}"
    paths = f"data/{stem}.parquet", f"meta/{stem}.parquet"
    groups = *[7] * (rows // 7), *([rows % 7] if rows % 7 else [])
    return Shard(split, continent, *paths, rows, 900 + rows, 90 + rows, 800 + rows, groups, pids)


def manifest_of(*shards: Shard, **changes: Any) -> Manifest:
    names = sorted({"cameras.csv", *(path for shard in shards for path in (shard.path, shard.meta_path))})
    files = tuple(FileEntry(name, 3, 100, hashlib.sha256(name.encode()).hexdigest()) for name in names)
    fields = {"name": "entire-id", "version": "1.0.0", "format": "parquet", "seed": 0, "shard_rows": 100}
    return Manifest(**fields | {"shards": shards, "files": files} | changes)


SMALL = manifest_of(shard_of("query", "asia", (0, 3)), shard_of("gallery", "asia", (0, 3, 7)))


def write(folder: Path, manifest: Manifest | dict[str, Any] | str | bytes) -> Path:
    if isinstance(manifest, Manifest):
        manifest = manifest.to_json()
    if isinstance(manifest, dict):
        manifest = json.dumps(manifest)
    (folder / "manifest.json").write_bytes(manifest.encode() if isinstance(manifest, str) else manifest)
    return folder


def test_files_are_found_by_path_in_a_mapping_that_is_made_once_and_does_not_travel() -> None:
    manifest = replace(SMALL)
    assert {path: entry.path for path, entry in manifest.entries.items()} == {one.path: one.path for one in SMALL.files}
    assert manifest.entries is manifest.entries
    copy = pickle.loads(pickle.dumps(manifest))
    assert copy == manifest
    assert "entries" not in vars(copy)
    assert copy.entries == manifest.entries
    assert replace(manifest, files=()).entries == {}


shards = st.builds(
    shard_of,
    st.sampled_from(SPLITS),
    st.sampled_from(["asia", "north_america", "unknown"]),
    st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=5).map(lambda pids: tuple(sorted(pids))),
    st.integers(0, 99_999),
    st.integers(1, 10**3),
)


@given(
    members=st.lists(shards, min_size=1, max_size=6, unique_by=lambda shard: shard.path),
    seed=st.integers(0, 2**64 - 1),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_a_manifest_comes_back_from_its_text(members: list[Shard], seed: int, name: str, tmp_path_factory) -> None:
    manifest = manifest_of(*members, seed=seed, name=name)
    folder = write(tmp_path_factory.mktemp("round"), manifest)
    assert read_manifest(folder) == manifest
    assert read_manifest(folder).to_json() == manifest.to_json()


def test_equal_manifests_have_equal_text_and_others_do_not() -> None:
    again = manifest_of(shard_of("query", "asia", (0, 3)), shard_of("gallery", "asia", (0, 3, 7)))
    assert again.to_json() == SMALL.to_json()
    for changes in ({"version": "1.0.1"}, {"seed": 1}, {"format": "webdataset"}, {"shard_rows": 5}, {"name": "x"}):
        assert replace(SMALL, **changes).to_json() != SMALL.to_json()


def test_the_text_has_a_line_for_every_shard_and_file() -> None:
    lines = SMALL.to_json().splitlines()
    for path in (entry.path for entry in SMALL.files):
        assert sum(f'"path": "{path}", "rows"' in line for line in lines) >= 1
    assert all(sum(name in line for line in lines) for name in ("content_sha256", "totals", "schema_version"))


def test_totals_count_people_once_and_junk_never() -> None:
    manifest = manifest_of(
        shard_of("gallery", "asia", (0, 3), 0, 10),
        shard_of("gallery", "asia", (), 1, 5),  # junk alone
        shard_of("gallery", "europe", (3, 4), 0, 7),
        shard_of("train", "europe", (3,), 0, 2),
    )
    assert list(manifest.splits) == ["train", "gallery"], "the usual order, and no split without rows"
    assert (manifest.splits["gallery"].rows, manifest.splits["gallery"].people) == (22, 3)
    assert manifest.splits["gallery"].image_bytes == 3 * 800 + 22
    assert manifest.num_rows == 24
    assert manifest.continents == ("asia", "europe")
    assert json.loads(manifest.to_json())["totals"]["gallery"]["people"] == 3


def test_the_content_digest_is_that_of_sorted_paths_and_digests() -> None:
    lines = sorted(f"{entry.path}\0{entry.sha256}\n" for entry in SMALL.files)
    assert SMALL.content_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert content_digest(reversed(SMALL.files)) == SMALL.content_sha256


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [("rows", 4, True), ("bytes", 101, True), ("sha256", "0" * 64, False), ("path", "a.csv", False)],
)
def test_the_content_digest_depends_on_path_and_sha256_alone(field: str, value: object, same: bool) -> None:
    first, *others = SMALL.files
    changed = replace(SMALL, files=(replace(first, **{field: value}), *others))
    assert (changed.content_sha256 == SMALL.content_sha256) == same


def test_the_content_digest_does_not_depend_on_version_name_or_seed() -> None:
    other = replace(SMALL, version="2.0.0", name="x", seed=9, format="webdataset")
    assert other.content_sha256 == SMALL.content_sha256


def test_moving_bytes_between_two_files_changes_the_content_digest() -> None:
    first, second, *others = SMALL.files
    swapped = (replace(first, sha256=second.sha256), replace(second, sha256=first.sha256), *others)
    assert content_digest(swapped) != SMALL.content_sha256


def test_readme_and_manifest_are_not_among_the_files(packed: Path) -> None:
    """The README holds the digest: it cannot be part of it."""
    manifest = read_manifest(packed)
    paths = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert {entry.path for entry in manifest.files} == paths - {"README.md", "manifest.json"}
    (packed / "README.md").write_text("another card")
    assert read_manifest(packed).content_sha256 == manifest.content_sha256


def test_file_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 10**6)
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch], ids=["nothing", "empty-folder", "file"])
def test_no_manifest_is_no_data_set(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "entire-id")
    with pytest.raises(DatasetNotFoundError, match="entire-id pack"):
        read_manifest(tmp_path / "entire-id")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b"[]", b"null", b"{}", b'"x"', b"7", b'{"schema_version": 1}'],
    ids=["empty", "cut", "no-utf8", "list", "null", "no-fields", "string", "number", "version-alone"],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        read_manifest(write(tmp_path, text))


def test_a_folder_in_the_manifests_place_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(EntireIdError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_schema_version_is_refused_by_its_number(tmp_path: Path, version: object) -> None:
    fields = json.loads(SMALL.to_json()) | {"schema_version": version}
    with pytest.raises(ManifestError, match="schema version") as caught:
        read_manifest(write(tmp_path, fields))
    assert repr(version) in str(caught.value)


def _edit_file(number: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["files"][number].update(changes)


@pytest.mark.parametrize(
    "edit",
    [
        _edit_file(0, sha256="0" * 64),
        _edit_file(0, path="cameras2.csv"),
        lambda fields: fields["files"].pop(),
        lambda fields: fields["files"].append(fields["files"][0]),
        lambda fields: fields.update(content_sha256="0" * 64),
        lambda fields: fields.pop("content_sha256"),
    ],
    ids=["sha256", "path", "file-removed", "file-twice", "digest", "no-digest"],
)
def test_an_edit_of_the_files_is_noticed(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(SMALL.to_json())
    edit(fields)
    with pytest.raises(ManifestError, match="edited"):
        read_manifest(write(tmp_path, fields))


def _with_right_digest(fields: dict[str, Any]) -> dict[str, Any]:
    lines = sorted(f"{entry['path']}\0{entry['sha256']}\n" for entry in fields["files"])
    return fields | {"content_sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


@pytest.mark.parametrize(
    "path", ["../x.parquet", "data/../../x", "/etc/passwd", "C:/x", "data\\x", "", "a\0b", "..", "data/.."]
)
def test_a_path_out_of_the_folder_is_refused_even_with_the_right_digest(tmp_path: Path, path: str) -> None:
    fields = json.loads(SMALL.to_json())
    fields["files"][0]["path"] = path
    with pytest.raises(ManifestError, match="leads out of the folder"):
        read_manifest(write(tmp_path, _with_right_digest(fields)))


@pytest.mark.parametrize("field", ["path", "meta_path"])
def test_a_shard_that_is_not_among_the_files_is_refused(tmp_path: Path, field: str) -> None:
    fields = json.loads(SMALL.to_json())
    fields["shards"][0][field] = "../../other.parquet"
    with pytest.raises(ManifestError, match="not among the files"):
        read_manifest(write(tmp_path, fields))


@pytest.mark.parametrize("row_groups", [[], [7], [7, 4], [7, 0, 3]])
def test_row_groups_that_do_not_make_up_the_rows_are_refused(tmp_path: Path, row_groups: list[int]) -> None:
    fields = json.loads(SMALL.to_json())
    fields["shards"][0]["row_groups"] = row_groups
    with pytest.raises(ManifestError, match="do not make up its 10 rows"):
        read_manifest(write(tmp_path, fields))


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: fields.pop("shards"),
        lambda fields: fields.update(files=7),
        lambda fields: fields.update(shards=[None]),
        lambda fields: fields["shards"][0].pop("pids"),
        lambda fields: fields["shards"][0].update(colour="red"),
        lambda fields: fields["files"][0].pop("rows"),
        lambda fields: fields.pop("seed"),
        lambda fields: fields.update(shards="abc"),
        lambda fields: fields.update(files=["cameras.csv"]),
    ],
)
def test_missing_and_unknown_fields_are_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(SMALL.to_json())
    edit(fields)
    with pytest.raises(ManifestError, match="malformed"):
        read_manifest(write(tmp_path, fields))


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("files", "path", 5),
        ("files", "path", None),
        ("files", "bytes", "100"),
        ("files", "rows", None),
        ("files", "sha256", 7),
        ("shards", "rows", "10"),
        ("shards", "rows", None),
        ("shards", "num_bytes", [1]),
        ("shards", "pids", ["a"]),
        ("shards", "pids", "ab"),
        ("shards", "split", "dev"),
        ("shards", "split", None),
        ("shards", "continent", None),
        ("shards", "continent", "../x"),
        (None, "format", "zip"),
        (None, "format", None),
        (None, "version", 1),
    ],
)
def test_values_of_another_type_or_set_are_refused_when_the_manifest_is_read(
    tmp_path: Path, where: str | None, field: str, value: object
) -> None:
    """Whoever reads a manifest trusts its types: `"100"` rows or a split `dev` would fail later, without a sentence."""
    fields = json.loads(SMALL.to_json())
    (fields[where][0] if where else fields)[field] = value
    with pytest.raises(ManifestError):
        read_manifest(write(tmp_path, _with_right_digest(fields)))
