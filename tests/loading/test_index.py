"""The index of a split: every column, in the order of the shards, from anywhere; and when offsets are trusted."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from entire_id.errors import (
    CorruptCropError,
    DatasetNotFoundError,
    DownloadError,
    ManifestError,
    SplitNotFoundError,
)
from entire_id.loading.files import FetchOptions, Files, open_files
from entire_id.loading.index import ShardIndex, concat_indexes, fetch_manifest, open_index, read_shard_meta
from entire_id.loading.reader import CropReader
from entire_id.loading.rows import RowReader, check_shard

from builders import pack_folder, packed_images
from webserver import WebServer

QUICK = FetchOptions(backoff_s=0.001, timeout_s=5)
ASIA = "data/gallery/asia-00000.parquet"


@pytest.fixture
def shards(crops: Path, tmp_path: Path) -> Path:
    """`crops` in many small shards."""
    return pack_folder(crops, tmp_path / "entire-id", shard_rows=4)


@pytest.fixture(params=["local", "web", "hub"])
def files(request: pytest.FixtureRequest, packed: Path) -> Files:
    """`packed`, wherever it lies."""
    if request.param == "local":
        return open_files(packed)
    if request.param == "web":
        return open_files(f"{request.getfixturevalue('web').url}/entire-id", QUICK)
    request.getfixturevalue("hub")
    return open_files("owner/entire-id", QUICK)


def meta_of(folder: Path, split: str) -> list[dict[str, object]]:
    """The rows of a split, as the meta files have them."""
    names = [shard["meta_path"] for shard in json.loads((folder / "manifest.json").read_bytes())["shards"]]
    tables = [pq.read_table(folder / name, partitioning=None) for name in names if f"/{split}/" in name]
    return pa.concat_tables(tables).to_pylist()


def test_columns_are_those_of_the_meta_files(shards: Path) -> None:
    index = open_index(open_files(shards), ("gallery",))
    rows = meta_of(shards, "gallery")
    assert len(index) == len(rows) == 24
    assert len(index.shards) > 4
    for name, values in {
        "pid": index.pids,
        "camid": index.camids,
        "seq": index.seqs,
        "width": index.widths,
        "height": index.heights,
        "offset": index.offsets,
        "length": index.lengths,
    }.items():
        assert values.tolist() == [row[name] for row in rows]
        assert not values.flags.writeable
    assert [index.key(row) for row in range(24)] == index.keys == [row["key"] for row in rows]
    assert [f"{value:016x}" for value in index.xxh3.tolist()] == [row["xxh3"] for row in rows]
    assert [index.continent_names[code] for code in index.continents] == [row["continent"] for row in rows]
    assert [index.shards[number].path for number in index.shard_numbers] == [row["shard"] for row in rows]
    assert index.source_names == ("",)
    assert not index.sources.any()


def test_every_place_has_the_same_rows(files: Files, packed: Path) -> None:
    index = open_index(files, ("gallery",))
    reader = RowReader(index)
    images = packed_images(packed)
    assert {key: reader.read(row) for row, key in enumerate(index.keys)} == {
        key: data for key, data in images.items() if key.startswith("gallery/")
    }
    assert reader.read_many([5, 3, 5]) == [reader.read(row) for row in (5, 3, 5)]


def test_reader_of_crops_takes_any_place(hub: WebServer, packed: Path) -> None:
    with CropReader("owner/entire-id", "query", QUICK) as far, CropReader(packed, "query") as near:
        assert far.keys == near.keys
        assert far.meta.equals(near.meta)
        assert [far.read(row) for row in range(12)] == [near.read(row) for row in range(12)]
        assert np.array_equal(far.pixels(3), near.pixels(3))


def test_one_shard_by_itself(shards: Path, web: WebServer) -> None:
    files = open_files(f"{web.url}/entire-id", QUICK)
    manifest = fetch_manifest(files)
    chosen = [shard for shard in manifest.shards if shard.split == "gallery"][2]
    index = read_shard_meta(files, manifest, chosen)
    assert [path for path, _ in web.requests] == ["/entire-id/manifest.json", f"/entire-id/{chosen.meta_path}"]
    whole = open_index(files, ("gallery",))
    assert index.keys == [key for row, key in enumerate(whole.keys) if whole.shard_numbers[row] == 2]
    assert len(RowReader(index).read(0)) == index.lengths[0]


def test_rows_are_taken_and_joined(shards: Path) -> None:
    index = open_index(open_files(shards), ("gallery",))
    some = index.take(np.array([7, 2, 20]), None)
    assert some.keys == [index.key(row) for row in (7, 2, 20)]
    both = concat_indexes([some, index.take(index.pids == 1, None)], 9)
    assert both.pids.tolist() == [*index.pids[[7, 2, 20]], *[1] * 6]
    reader, whole = RowReader(both), RowReader(index)
    places = [7, 2, 20, *np.flatnonzero(index.pids == 1)]
    assert [reader.read(row) for row in range(9)] == [whole.read(int(row)) for row in places]


def test_missing_data_sets_and_splits(packed: Path, web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no manifest\.json in it"):
        open_index(open_files(f"{web.url}/none", QUICK), ("gallery",))
    with pytest.raises(DatasetNotFoundError, match=r"no manifest\.json in it"):
        open_index(open_files(tmp_path), ("gallery",))
    with pytest.raises(SplitNotFoundError, match="there is query, gallery"):
        open_index(open_files(f"{web.url}/entire-id", QUICK), ("val",))


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"schema_version": 9}', b"\xff"])
def test_what_is_no_manifest_is_an_error_anywhere(packed: Path, web: WebServer, text: bytes) -> None:
    (packed / "manifest.json").write_bytes(text)
    for where in (packed, f"{web.url}/entire-id"):
        with pytest.raises(ManifestError, match=r"entire-id/manifest\.json'"):
            fetch_manifest(open_files(where, QUICK))


def test_content_that_changed_since_is_an_error(packed: Path, crops: Path) -> None:
    files = open_files(packed)
    fetch_manifest(files)
    (crops / "query/00000_c000s0_760487.jpg").unlink()
    packed.rename(packed.with_name("old"))
    pack_folder(crops, packed)
    with pytest.raises(ManifestError, match="another content than when it was first read"):
        fetch_manifest(files)


# --- trust ---


def rewrite_meta(folder: Path, path: str, change: dict[str, object]) -> None:
    """Replace columns of a meta file, and tell the manifest."""
    meta = pq.read_table(folder / path, partitioning=None)
    for name, values in change.items():
        place = meta.schema.get_field_index(name)
        meta = meta.set_column(place, meta.schema.field(place), pa.array(values, meta.schema.field(place).type))
    pq.write_table(meta, folder / path)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for entry in manifest["files"]:
        if entry["path"] == path:
            data = (folder / path).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lines = sorted(f"{entry['path']}\0{entry['sha256']}\n" for entry in manifest["files"])
    manifest["content_sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", ["0" * 15, "0" * 17, "g" * 16, "ABCDEF0123456789", "é" * 8, ""])
def test_checksums_that_are_none(packed: Path, web: WebServer, text: str) -> None:
    rewrite_meta(packed, "meta/gallery/asia-00000.parquet", {"xxh3": ["0" * 16] * 15 + [text]})
    for where in (packed, f"{web.url}/entire-id"):
        with pytest.raises(ManifestError, match="16 hexadecimal digits"):
            RowReader(open_index(open_files(where, QUICK), ("gallery",))).read(0)


@pytest.mark.parametrize("change", [{"pid": [None] + [1] * 15}, {"key": [None] + ["x"] * 15}])
def test_nulls_are_an_error(packed: Path, web: WebServer, change: dict[str, object]) -> None:
    rewrite_meta(packed, "meta/gallery/asia-00000.parquet", change)
    for where in (packed, f"{web.url}/entire-id"):
        with pytest.raises(ManifestError, match="nulls"):
            open_index(open_files(where, QUICK), ("gallery",)).key(0)


def test_meta_file_that_changed_since_is_an_error(packed: Path) -> None:
    index = open_index(open_files(packed), ("gallery",))
    meta = packed / index.shards[0].meta_path
    pq.write_table(pq.read_table(meta, partitioning=None).slice(1), meta)
    for read in (lambda: index.key(3), lambda: index.keys, lambda: RowReader(index).read(3)):
        with pytest.raises(ManifestError, match="15 rows, 16 expected"):
            read()
    meta.unlink()
    with pytest.raises(ManifestError, match="cannot be read"):
        index.checksum(3)


@pytest.mark.parametrize("change", [{"offset": [-4] * 16}, {"offset": [1 << 60] * 16}, {"length": [-4] * 16}])
def test_offsets_out_of_the_file_are_an_error(packed: Path, web: WebServer, change: dict[str, object]) -> None:
    rewrite_meta(packed, "meta/gallery/asia-00000.parquet", change)
    for where in (packed, f"{web.url}/entire-id"):
        with pytest.raises(ManifestError):
            RowReader(open_index(open_files(where, QUICK), ("gallery",))).read(0)


@pytest.mark.parametrize("damage", ["cut", "longer", "rewritten", "gone"])
def test_shard_that_is_another_is_not_trusted(packed: Path, web: WebServer, damage: str) -> None:
    index = open_index(open_files(f"{web.url}/entire-id", QUICK), ("gallery",))
    shard = packed / ASIA
    size = shard.stat().st_size
    if damage == "gone":
        shard.unlink()
    elif damage == "rewritten":
        shard.write_bytes(bytes(size))
    else:
        os.truncate(shard, size + (1 if damage == "longer" else -1))
    with pytest.raises(ManifestError, match=r"asia-00000\.parquet"):
        RowReader(index).read(5)


def test_each_shard_is_checked_once(packed: Path, web: WebServer) -> None:
    reader = RowReader(open_index(open_files(f"{web.url}/entire-id", QUICK), ("gallery",)))
    web.requests.clear()
    for row in (3, 4, 5, 3):
        reader.read(row)
    first = reader.index.offsets[0], reader.index.lengths[0]
    assert web.asked(ASIA)[0] == f"bytes={first[0]}-{first[0] + first[1] - 1}"
    assert len(web.asked(ASIA)) == 5, "the first image of the shard, which tells its size too, and the four"


def flip(shard: Path, index: ShardIndex, row: int) -> None:
    """Change a byte of an image, in place."""
    with shard.open("r+b") as file:
        file.seek(index.offsets[row] + 3)
        byte = file.read(1)
        file.seek(index.offsets[row] + 3)
        file.write(bytes([byte[0] ^ 255]))


def test_verified_crops_are_compared_with_their_checksums(packed: Path, web: WebServer) -> None:
    near = open_index(open_files(packed), ("gallery",))
    flip(packed / ASIA, near, 5)
    assert xxhash.xxh3_64_intdigest(RowReader(near).read(5)) != near.xxh3[5], "nobody asked"
    far = open_index(open_files(f"{web.url}/entire-id", QUICK), ("gallery",))
    for reader in (RowReader(near, verify=True), RowReader(far)):
        assert reader.read(4)
        with pytest.raises(CorruptCropError, match=r"asia-00000\.parquet': .*\(row 5, at byte") as caught:
            reader.read(5)
        assert (caught.value.row, caught.value.key) == (5, near.key(5))
        found = reader.read_many([4, 5, 6])
        assert [isinstance(data, CorruptCropError) for data in found] == [False, True, False]


def test_damage_on_the_way_is_repaired(packed: Path, web: WebServer, tmp_path: Path) -> None:
    options = FetchOptions(backoff_s=0.001, cache_dir=tmp_path / "cache")
    index = open_index(open_files(f"{web.url}/entire-id", options), ("gallery",))
    check_shard(index.shards[0])
    web.faults.append("damage")
    image = RowReader(index).read(5)
    assert xxhash.xxh3_64_intdigest(image) == index.xxh3[5]
    asked = len(web.requests)
    assert RowReader(index).read(5) == image
    assert len(web.requests) == asked, "the cache has the right one"


def test_damaged_meta_file_is_asked_for_once_more(packed: Path, web: WebServer) -> None:
    files = open_files(f"{web.url}/entire-id", QUICK)
    manifest = fetch_manifest(files)
    shard = next(shard for shard in manifest.shards if shard.split == "gallery")
    meta = packed / shard.meta_path
    data = meta.read_bytes()
    meta.write_bytes(data[:-1] + b"x")
    with pytest.raises(ManifestError, match="not those of its digest"):
        read_shard_meta(files, manifest, shard)
    assert len(web.asked(".parquet")) == 2


def test_index_that_cannot_be_fetched_is_an_error(packed: Path, web: WebServer) -> None:
    files = open_files(f"{web.url}/entire-id", FetchOptions(retries=1, backoff_s=0.001))
    manifest = fetch_manifest(files)
    web.faults.extend(["500"] * 99)
    with pytest.raises(DownloadError, match="tried 2 times"):
        open_index(files, ("gallery",), manifest)


# --- other processes ---


def check_same(copy: ShardIndex, index: ShardIndex) -> None:
    assert copy.table.equals(index.table)
    assert copy.keys == index.keys
    assert copy.xxh3.tolist() == index.xxh3.tolist()
    assert RowReader(copy).read(1) == RowReader(index).read(1)


def test_index_travels_as_the_name_of_a_file(files: Files) -> None:
    index = open_index(files, ("gallery",))
    sent = pickle.dumps(index)
    assert pickle.dumps(index) == sent, "written once"
    folder = index._mapped.folder
    copy = pickle.loads(sent)
    check_same(copy, index)
    del index
    assert not folder.exists()
    again = pickle.loads(sent)  # read anew
    check_same(again, copy)  # what is mapped stays


def test_remote_texts_are_fetched_once(packed: Path, web: WebServer) -> None:
    index = open_index(open_files(f"{web.url}/entire-id", QUICK), ("gallery",))
    some = index.take(np.array([20, 3]), partial(pytest.fail, "not read again"))
    asked = len(web.requests)
    copy = pickle.loads(pickle.dumps(some))
    assert copy.keys == [index.key(20), index.key(3)] == [copy.key(0), copy.key(1)]
    assert [copy.checksum(row) for row in range(2)] == index.xxh3[[20, 3]].tolist()
    assert len(web.requests) == asked
    asia = index.take(index.shard_numbers == 0, None)
    assert list(asia.texts) == [0], "of shards that have rows"


def test_index_that_cannot_be_made_anew_travels_itself(files: Files) -> None:
    index = open_index(files, ("gallery",)).take(np.array([3, 1]), None)
    copy = pickle.loads(pickle.dumps(index))
    check_same(copy, index)
    assert index._mapped is None


def test_a_forked_child_leaves_the_file_alone(packed: Path) -> None:
    index = open_index(open_files(packed), ("gallery",))
    pickle.dumps(index)
    folder = index._mapped.folder
    child = os.fork()
    if not child:
        del index
        os._exit(0 if folder.exists() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert folder.exists()


def test_the_file_goes_with_the_process(packed: Path, tmp_path: Path) -> None:
    code = (
        "import pickle, sys; from entire_id.loading.files import open_files; from entire_id.loading.index import "
        "open_index; index = open_index(open_files(sys.argv[1]), ('gallery',)); pickle.dumps(index); "
        "print(index._mapped.folder)"
    )
    command = [sys.executable, "-c", code, str(packed)]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert "entire-id-" in folder
    assert not Path(folder).exists()
