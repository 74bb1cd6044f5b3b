"""WebDataset shards: what tarfile, webdataset and datasets make of them."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from entire_id.schema import arrow_schema, shard_columns
from entire_id.shards.records import Crops, Spans
from entire_id.shards.tar import TarShard, read_crops

from builders import image_bytes

LABELS = pa.schema([field for field in arrow_schema(shard_columns()) if field.name != "image"])
LONG = "gallery/" + "x" * 150
DEEP = "gallery/" + "/".join(["folder" * 6] * 8) + "/00001_c000s0_1"
KEYS = ["gallery/00000_c000s0_1", LONG, DEEP, "gallery/Übergang/Зебра_駅", "query/a%2Eb%25c", "gallery/with space"]


def crops_of(keys: list[str], images: list[bytes] | None = None) -> Crops:
    images = [image_bytes(seed) for seed in range(len(keys))] if images is None else images
    n = len(keys)
    labels = pa.table(
        {
            "key": keys,
            "pid": [number - 1 for number in range(n)],
            "camid": list(range(n)),
            "continent": ["asia"] * n,
            "seq": [-1] * n,
            "frame": [2**62] * n,
            "width": [24] * n,
            "height": [48] * n,
            "xxh3": [xxhash.xxh3_64_hexdigest(image) for image in images],
        },
        LABELS,
    )
    return Crops(images, [key.rpartition("/")[2] + ".jpg" for key in keys], labels)


def write_tar(path: Path, *groups: Crops) -> Spans:
    shard = TarShard(path)
    for crops in groups:
        shard.write(crops)
    return shard.close()


def bytes_at(path: Path, spans: Spans) -> list[bytes]:
    data = path.read_bytes()
    places = zip(spans.offset.tolist(), spans.length.tolist(), strict=True)
    return [data[offset : offset + length] for offset, length in places]


def samples_of(path: Path, *decode: str) -> list[dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset 1.0 leaves its file to the garbage collector
        stream = wds.WebDataset(str(path), shardshuffle=False)
        samples = list(stream.decode(*decode) if decode else stream)
        del stream
        gc.collect()
    return samples


def test_each_image_is_followed_by_its_labels(tmp_path: Path) -> None:
    crops = crops_of(KEYS)
    write_tar(tmp_path / "a.tar", crops)
    with tarfile.open(tmp_path / "a.tar", "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [key + end for key in KEYS for end in (".jpg", ".json")]
        images = [archive.extractfile(member).read() for member in members[::2]]
        labels = [json.loads(archive.extractfile(member).read()) for member in members[1::2]]
    assert images == crops.images
    assert labels == [{"path": name, **row} for name, row in zip(crops.names, crops.labels.to_pylist(), strict=True)]


def test_members_carry_no_time_no_owner_and_ordinary_rights(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", crops_of(KEYS))
    with tarfile.open(tmp_path / "a.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isreg()
            assert member.mode == 0o644


def test_plain_names_need_no_extension_header(tmp_path: Path) -> None:
    """Two headers, two bodies, the end: a crop costs 1 KiB beside its bytes and no more."""
    spans = write_tar(tmp_path / "a.tar", crops_of(KEYS[:1], [b"x" * 100]))
    assert spans.offset.tolist() == [512]
    assert (tmp_path / "a.tar").stat().st_size == 4 * 512 + 1024


@pytest.mark.parametrize("sizes", [[0], [1], [511, 512, 513], [8_000] * 20, [3 << 20, 5]], ids=str)
def test_spans_point_at_the_bytes_of_every_image(tmp_path: Path, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(size) for size in sizes]
    spans = write_tar(tmp_path / "a.tar", crops_of([f"gallery/{n}" for n in range(len(sizes))], images))
    assert bytes_at(tmp_path / "a.tar", spans) == images
    assert spans.offset.dtype == np.int64
    assert spans.length.dtype == np.int32


def test_spans_are_right_behind_long_and_foreign_names(tmp_path: Path) -> None:
    crops = crops_of(KEYS)
    assert bytes_at(tmp_path / "a.tar", write_tar(tmp_path / "a.tar", crops)) == crops.images


KEY_CHARACTERS = st.characters(exclude_characters="./\\\0", exclude_categories=["Cs", "Cc"])
ANY_KEYS = st.lists(
    st.text(KEY_CHARACTERS, min_size=1, max_size=140).map(lambda name: f"gallery/{name}"), min_size=1, unique=True
)


@settings(max_examples=40)
@given(keys=ANY_KEYS)
def test_any_key_comes_back(keys: list[str], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tar"
    crops = crops_of(keys, [key.encode() for key in keys])
    spans = write_tar(path, crops)
    assert bytes_at(path, spans) == crops.images
    [(images, names, labels)] = read_crops(path)
    assert images == crops.images
    assert names == crops.names
    assert labels.equals(crops.labels)


def test_webdataset_reads_the_bytes_and_the_labels(tmp_path: Path) -> None:
    crops = crops_of(KEYS)
    write_tar(tmp_path / "a.tar", crops)
    samples = samples_of(tmp_path / "a.tar")
    assert [sample["__key__"] for sample in samples] == KEYS
    assert [sample["jpg"] for sample in samples] == crops.images
    assert [json.loads(sample["json"])["key"] for sample in samples] == KEYS


def test_webdataset_decodes_pixels_and_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", crops_of(KEYS[:3]))
    samples = samples_of(tmp_path / "a.tar", "rgb8")
    assert [sample["jpg"].shape for sample in samples] == [(48, 24, 3)] * 3
    assert [sample["json"]["pid"] for sample in samples] == [-1, 0, 1]
    assert samples[0]["json"]["frame"] == 2**62


def test_webdataset_decodes_a_png_that_is_named_jpg(tmp_path: Path) -> None:
    images = [image_bytes(0), image_bytes(1, kind="PNG")]
    write_tar(tmp_path / "a.tar", crops_of(KEYS[:2], images))
    samples = samples_of(tmp_path / "a.tar", "rgb8")
    assert [sample["jpg"].shape for sample in samples] == [(48, 24, 3)] * 2
    assert set(samples[0]) == set(samples[1]), "every sample has the same fields"


def test_equal_crops_give_equal_bytes_however_they_are_grouped(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", crops_of(KEYS))
    whole = crops_of(KEYS)
    parts = [Crops(whole.images[s], whole.names[s], whole.labels[s]) for s in (slice(0, 2), slice(2, 6))]
    write_tar(tmp_path / "b.tar", *parts)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_large_shards_are_read_in_batches_that_keep_the_order(tmp_path: Path) -> None:
    keys = [f"gallery/{number:05d}" for number in range(1030)]
    write_tar(tmp_path / "a.tar", crops_of(keys, [key.encode() for key in keys]))
    batches = list(read_crops(tmp_path / "a.tar", batch_rows=100))
    assert [len(images) for images, _, _ in batches] == [100] * 10 + [30]
    assert [image.decode() for images, _, _ in batches for image in images] == keys
    assert pa.concat_tables(labels for _, _, labels in batches)["key"].to_pylist() == keys


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "names",
    [
        ["gallery/a.jpg"],
        ["gallery/a.json", "gallery/a.jpg"],
        ["gallery/a.jpg", "gallery/b.json"],
        ["gallery/a.jpg", "gallery/a.json", "gallery/b.jpg"],
        ["gallery/a.png", "gallery/a.json"],
        ["gallery/a.jpg", "gallery/a.cls", "gallery/a.json"],
    ],
    ids=" ".join,
)
def test_images_and_labels_that_are_no_pairs_are_refused(tmp_path: Path, names: list[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            _add(archive, name, json.dumps({"path": "a.jpg", "key": name.rpartition(".")[0]}).encode())
    with pytest.raises(ValueError, match="not followed by its labels"):
        list(read_crops(tmp_path / "a.tar"))


def test_a_folder_in_the_place_of_an_image_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("gallery/a.jpg")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
        _add(archive, "gallery/a.json", b'{"path":"a.jpg","key":"gallery/a"}')
    with pytest.raises(ValueError, match="is no file"):
        list(read_crops(tmp_path / "a.tar"))


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, crops_of(KEYS))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises((tarfile.TarError, ValueError)):
        list(read_crops(path))


def test_an_abandoned_shard_can_be_written_again(tmp_path: Path) -> None:
    shard = TarShard(tmp_path / "a.tar")
    shard.write(crops_of(KEYS))
    shard.abandon()
    spans = write_tar(tmp_path / "a.tar", crops_of(KEYS[:1], [b"x"]))
    assert bytes_at(tmp_path / "a.tar", spans) == [b"x"]
    assert [sample["__key__"] for sample in samples_of(tmp_path / "a.tar")] == KEYS[:1]
