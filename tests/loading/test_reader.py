from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entire_id.errors import DatasetNotFoundError, ManifestError, SplitNotFoundError
from entire_id.loading.reader import CropReader

from builders import pack_folder


def test_every_row_is_its_file(packed_any: Path, crops: Path) -> None:
    with CropReader(packed_any, "gallery") as reader:
        assert len(reader) == len(reader.pids) == len(reader.camids) == 24
        for row, key in enumerate(reader.keys):
            name = key.removeprefix("gallery/")
            assert reader.read(row) == (crops / "bounding_box_test" / f"{name}.jpg").read_bytes()
            assert name.startswith(f"{reader.pids[row]:05d}_c{reader.camids[row]:03d}")


def test_rows_of_many_shards_are_in_the_order_of_the_shards(crops: Path, tmp_path: Path) -> None:
    packed = pack_folder(crops, tmp_path / "entire-id", shard_rows=4)
    with CropReader(packed, "gallery") as reader:
        assert len(set(reader.meta["shard"].to_pylist())) > 4
        assert reader.meta["shard"].to_pylist() == sorted(reader.meta["shard"].to_pylist())
        data = [reader.read(row) for row in range(len(reader))]
        reader.close()
        assert data == [reader.read(row) for row in range(len(reader))]


def test_unknown_split_and_folder(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitNotFoundError, match="not released by the authors"):
        CropReader(packed, "train")
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        CropReader(tmp_path / "none", "train")


def test_shard_of_another_size_is_not_trusted(packed: Path) -> None:
    shard = packed / "data/gallery/asia-00000.parquet"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(ManifestError, match="the manifest knows another file"):
        CropReader(packed, "gallery")


def test_shard_rewritten_at_the_same_size_is_not_trusted(packed: Path) -> None:
    shard = packed / "data/gallery/asia-00000.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    with CropReader(packed, "gallery") as reader, pytest.raises(ManifestError, match="the shard was rewritten"):
        reader.read(0)


def test_missing_files_are_named(packed: Path) -> None:
    (packed / "meta/gallery/asia-00000.parquet").unlink()
    with pytest.raises(ManifestError, match="entire-id verify"):
        CropReader(packed, "gallery")


def test_reader_in_another_process_reads_its_own_files(packed: Path) -> None:
    with CropReader(packed, "gallery") as reader:
        expected = [reader.read(row) for row in range(len(reader))]
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert pool.map(reader.read, range(len(reader))) == expected


def test_shard_that_ends_early_is_an_error(packed: Path) -> None:
    with CropReader(packed, "gallery") as reader:
        reader.read(0)
        os.truncate(packed / "data/gallery/asia-00000.parquet", 2000)
        with pytest.raises(ManifestError, match="ends before its last image"):
            reader.read(15)


def test_meta_without_its_columns_is_an_error(packed: Path) -> None:
    path = packed / "meta/gallery/asia-00000.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("pid"), path)
    with pytest.raises(ManifestError, match="not the columns of the format"):
        CropReader(packed, "gallery")
