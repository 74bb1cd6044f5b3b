"""Parquet shards: plain for every reader, image bytes at known places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.errors import ManifestError
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards.parquet import ParquetShard, image_spans, read_crops, write_meta
from entire_id.shards.records import Crops

from builders import image_bytes

LABELS = pa.schema([field for field in arrow_schema(shard_columns()) if field.name != "image"])
IMAGE_LEAVES = ("image.bytes", "image.path")


def crops_of(images: list[bytes], first: int = 0) -> Crops:
    numbers = range(first, first + len(images))
    labels = pa.table(
        {
            "key": [f"gallery/{number:05d}_c000s0_{number}" for number in numbers],
            "pid": [number // 4 for number in numbers],
            "camid": [number % 3 for number in numbers],
            "continent": ["asia"] * len(images),
            "seq": [0] * len(images),
            "frame": list(numbers),
            "width": [24] * len(images),
            "height": [48] * len(images),
            "xxh3": [xxhash.xxh3_64_hexdigest(image) for image in images],
        },
        LABELS,
    )
    return Crops(images, [f"{number:05d}_c000s0_{number}.jpg" for number in numbers], labels)


def write_shard(path: Path, groups: list[list[bytes]]):
    shard = ParquetShard(path)
    first = 0
    for images in groups:
        shard.write(crops_of(images, first))
        first += len(images)
    return shard.close()


def bytes_at(path: Path, spans) -> list[bytes]:
    data = path.read_bytes()
    return [
        data[offset : offset + length]
        for offset, length in zip(spans.offset.tolist(), spans.length.tolist(), strict=True)
    ]


def random_images(sizes: list[int], seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(size) for size in sizes]


def leaves(path: Path) -> dict[str, list]:
    """Return the column chunks of every leaf, one for each row group."""
    with pq.ParquetFile(path) as shard:
        metadata = shard.metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        found: dict[str, list] = {}
        for group in groups:
            for number in range(group.num_columns):
                found.setdefault(group.column(number).path_in_schema, []).append(group.column(number).to_dict())
        return found


@pytest.mark.parametrize(
    "sizes",
    [
        [[1]],
        [[0, 1, 0, 2]],
        [[8_000] * 300],  # several pages a group
        [[10], [20, 30], [40] * 5],
        [[3 << 20]],  # larger than the largest page
        [[100, 2 << 20, 5, 1 << 20, (1 << 20) + 1, 7]],
        [[0] * 1000, [1] * 1000],
    ],
    ids=["one", "empty-images", "many-pages", "groups", "huge", "mixed", "tiny"],
)
def test_spans_point_at_the_bytes_of_every_image(tmp_path: Path, sizes: list[list[int]]) -> None:
    groups = [random_images(group, seed) for seed, group in enumerate(sizes)]
    spans = write_shard(tmp_path / "a.parquet", groups)
    assert spans.offset.dtype == np.int64
    assert spans.length.dtype == np.int32
    assert bytes_at(tmp_path / "a.parquet", spans) == [image for group in groups for image in group]


@settings(max_examples=25)
@given(groups=st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=30), min_size=1, max_size=4))
def test_spans_point_at_the_bytes_of_any_images(groups: list[list[bytes]], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    spans = write_shard(path, groups)
    assert bytes_at(path, spans) == [image for group in groups for image in group]


def test_equal_images_lie_in_the_file_twice(tmp_path: Path) -> None:
    spans = write_shard(tmp_path / "a.parquet", [[b"same" * 100] * 3])
    assert len(set(spans.offset.tolist())) == 3
    assert bytes_at(tmp_path / "a.parquet", spans) == [b"same" * 100] * 3


def test_one_write_is_one_row_group_and_one_order(tmp_path: Path) -> None:
    groups = [random_images([9] * size, size) for size in (3, 700, 1)]
    write_shard(tmp_path / "a.parquet", groups)
    read = list(read_crops(tmp_path / "a.parquet"))
    assert [images for images, _, _ in read] == groups
    names = [name for _, group_names, _ in read for name in group_names]
    assert names == [f"{number:05d}_c000s0_{number}.jpg" for number in range(704)]
    assert pa.concat_tables(labels for _, _, labels in read)["frame"].to_pylist() == list(range(704))


def test_image_leaves_are_plain_without_dictionary_statistics_or_compression(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [[b"same" * 500] * 100, random_images([500] * 100)])
    for name in IMAGE_LEAVES:
        for chunk in leaves(tmp_path / "a.parquet")[name]:
            assert chunk["compression"] == "UNCOMPRESSED"
            assert set(chunk["encodings"]) <= {"PLAIN", "RLE"}  # RLE: the definition levels
            assert not chunk["has_dictionary_page"]
            assert chunk["statistics"] is None


def test_labels_are_snappy_with_dictionaries(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [random_images([500] * 100)])
    labels = {name: chunks for name, chunks in leaves(tmp_path / "a.parquet").items() if name not in IMAGE_LEAVES}
    assert set(labels) == set(LABELS.names)
    for chunks in labels.values():
        assert all(chunk["compression"] == "SNAPPY" and chunk["has_dictionary_page"] for chunk in chunks)
        assert all(chunk["statistics"] is not None for chunk in chunks)


def test_every_column_has_a_page_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [random_images([500] * 100)])
    with pq.ParquetFile(tmp_path / "a.parquet") as shard:
        group = shard.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
    assert all(column.has_offset_index for column in columns)
    assert all(column.has_column_index for column in columns if column.path_in_schema not in IMAGE_LEAVES)


def test_one_changed_image_leaves_the_bytes_of_almost_all_others_where_they_are(tmp_path: Path) -> None:
    images = random_images([8_000] * 500)
    write_shard(tmp_path / "a.parquet", [images])
    changed = [*images]
    changed[250] = random_images([8_000], 99)[0]
    write_shard(tmp_path / "b.parquet", [changed])
    block = 4096
    one, other = ((tmp_path / name).read_bytes() for name in ("a.parquet", "b.parquet"))
    blocks = {one[start : start + block] for start in range(0, len(one), block)}
    shared = sum(other[start : start + block] in blocks for start in range(0, len(other), block))
    assert shared * block > 0.8 * len(other)


def test_the_schema_is_that_of_datasets(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [[b"x"]])
    types = {column.name: column.dtype for column in shard_columns()}
    features = datasets.Features(
        {name: datasets.Image() if dtype == "image" else datasets.Value(dtype) for name, dtype in types.items()}
    )
    stored = pq.read_schema(tmp_path / "a.parquet")
    assert stored.equals(features.arrow_schema)
    assert datasets.Features.from_arrow_schema(stored) == features
    assert arrow_schema(shard_columns()).equals(features.arrow_schema, check_metadata=True)


def test_datasets_reads_a_shard_as_it_stands(tmp_path: Path) -> None:
    images = [image_bytes(seed) for seed in range(5)]
    write_shard(tmp_path / "a.parquet", [images[:2], images[2:]])
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.column_names == [column.name for column in shard_columns()]
    assert rows[4]["image"].size == (24, 48)
    raw = rows.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == images
    assert raw[0]["image"]["path"] == "00000_c000s0_0.jpg"


def test_pyarrow_reads_back_what_was_written(tmp_path: Path) -> None:
    crops = crops_of(random_images([7, 8, 9]))
    shard = ParquetShard(tmp_path / "a.parquet")
    shard.write(crops)
    shard.close()
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.drop_columns("image").equals(crops.labels)
    assert table["image"].combine_chunks().field("bytes").to_pylist() == crops.images


def test_equal_crops_give_equal_bytes(tmp_path: Path) -> None:
    groups = [random_images([3_000] * 200), random_images([10])]
    write_shard(tmp_path / "a.parquet", groups)
    write_shard(tmp_path / "b.parquet", groups)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_num_bytes_is_that_of_the_arrow_table(tmp_path: Path) -> None:
    crops = crops_of(random_images([100, 2_000, 30_000]))
    shard = ParquetShard(tmp_path / "a.parquet")
    shard.write(crops)
    shard.close()
    assert crops.num_bytes == pytest.approx(pq.read_table(tmp_path / "a.parquet").nbytes, rel=0.001)


def test_an_abandoned_shard_can_be_removed_and_written_again(tmp_path: Path) -> None:
    shard = ParquetShard(tmp_path / "a.parquet")
    shard.write(crops_of([b"x"]))
    shard.abandon()
    (tmp_path / "a.parquet").unlink()
    spans = write_shard(tmp_path / "a.parquet", [[b"y"]])
    assert bytes_at(tmp_path / "a.parquet", spans) == [b"y"]


def image_table(images: list[bytes | None]) -> pa.Table:
    column = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array([f"{n}.jpg" for n in range(len(images))])], ["bytes", "path"]
    )
    return pa.table({"image": column, "pid": pa.array(range(len(images)), pa.int32())})


PLAIN = {"use_dictionary": False, "compression": "none"}


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        PLAIN | {"data_page_size": 1024},
        PLAIN | {"row_group_size": 7},
        PLAIN | {"write_page_checksum": True},
        PLAIN | {"write_statistics": False},
        PLAIN | {"write_page_index": True},
        PLAIN | {"version": "1.0"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_spans_of_a_plain_file_of_another_writer_are_right(tmp_path: Path, options: dict) -> None:
    images = random_images([50, 0, 3_000, 8] * 20)
    pq.write_table(image_table(images), tmp_path / "a.parquet", **options)
    assert bytes_at(tmp_path / "a.parquet", image_spans(tmp_path / "a.parquet")) == images


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "compression": "snappy"},
        {"use_dictionary": False, "compression": "zstd"},
        {"use_dictionary": ["image.bytes"], "compression": "none"},
        PLAIN | {"data_page_version": "2.0"},
        PLAIN | {"column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
        PLAIN | {"column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
    ],
    ids=["snappy", "zstd", "dictionary", "v2-pages", "delta-length", "delta"],
)
def test_a_file_whose_images_do_not_lie_plain_is_refused(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(image_table(random_images([50, 0, 3_000, 8] * 20)), path, **options)
    with pytest.raises(ManifestError) as caught:
        image_spans(path)
    assert str(path) in str(caught.value), "the message should name the file"


def test_delta_encoded_empty_images_are_refused_too(tmp_path: Path) -> None:
    """A page of another encoding must be known by its header: its bytes may look like plain values."""
    path = tmp_path / "a.parquet"
    encoding = {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}
    for sizes in ([0], [0, 0], [4], [1, 1, 1], [0] * 200):
        pq.write_table(image_table(random_images(sizes)), path, column_encoding=encoding, **PLAIN)
        with pytest.raises(ManifestError):
            image_spans(path)


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(image_table([b"abc", None, b"defg"]), path, **PLAIN)
    with pytest.raises(ManifestError, match="null"):
        image_spans(path)


def test_a_file_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pid": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ManifestError):
        image_spans(tmp_path / "a.parquet")


def test_damaged_page_headers_never_give_another_error_or_wrong_spans(tmp_path: Path) -> None:
    """Up to four bytes before the first image replaced at random: refused, or the spans are still right."""
    path = tmp_path / "a.parquet"
    spans = write_shard(path, [random_images([40, 50, 60])])
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(600):
        damaged = bytearray(sound)
        for position in rng.integers(4, spans.offset[0], rng.integers(1, 5)).tolist():
            damaged[position] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            found = image_spans(path)
        except ManifestError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes[repr(error)] += 1
        else:
            same = found.offset.tolist() == spans.offset.tolist() and found.length.tolist() == spans.length.tolist()
            outcomes["right" if same else "wrong"] += 1
    assert set(outcomes) == {"refused", "right"}, outcomes


def test_a_meta_file_keeps_its_rows_in_one_group_with_the_features(tmp_path: Path) -> None:
    labels = crops_of([b"x"] * 1500).labels
    columns = [*labels.columns, pa.array(["data/gallery/asia-00000.parquet"] * 1500), *[labels["frame"]] * 2]
    schema = arrow_schema(meta_columns())
    table = pa.Table.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    write_meta(tmp_path / "meta.parquet", table)
    with pq.ParquetFile(tmp_path / "meta.parquet") as meta:
        assert meta.metadata.num_row_groups == 1
        stored = meta.schema_arrow
        assert meta.read().equals(table)
    assert b"huggingface" in stored.metadata
    assert datasets.Features.from_arrow_schema(stored)["offset"] == datasets.Value("int64")
