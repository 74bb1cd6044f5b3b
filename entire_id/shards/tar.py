"""WebDataset shards: `<key>.jpg` and `<key>.json` for every crop, one after the other."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from entire_id.schema import arrow_schema, shard_columns
from entire_id.shards.records import Crops, Spans

__all__ = ["TarShard", "read_crops", "read_names"]

_IMAGE_SUFFIX = ".jpg"  # whatever the format: readers take the field's name from the ending, decoders look at the bytes
_LABELS_SUFFIX = ".json"


class TarShard:
    """Writes one shard, some crops at a time. Equal crops give equal bytes: no times, no owners."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._offsets: list[int] = []
        self._lengths: list[int] = []

    def write(self, crops: Crops) -> None:
        """Append `crops`."""
        for image, name, labels in zip(crops.images, crops.names, crops.labels.to_pylist(), strict=True):
            key = labels["key"]
            self._offsets.append(self._add(key + _IMAGE_SUFFIX, image))
            self._lengths.append(len(image))
            text = json.dumps({"path": name, **labels}, ensure_ascii=False, separators=(",", ":"))
            self._add(key + _LABELS_SUFFIX, text.encode())

    def close(self) -> Spans:
        """Finish the file and return where each image lies."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.close()
        return Spans(np.array(self._offsets, np.int64), np.array(self._lengths, np.int32))

    def abandon(self) -> None:
        """Release the file without finishing it."""
        self._file.close()

    def _add(self, name: str, data: bytes) -> int:
        """Append one member and return where its bytes start."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._file.write(info.tobuf(tarfile.PAX_FORMAT))  # plain ustar unless a name is long or not ASCII
        offset = self._file.tell()
        self._file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset


def read_crops(path: Path, batch_rows: int = 512) -> Iterator[tuple[list[bytes], list[str], pa.Table]]:
    """Yield (image bytes, file names, labels) of up to `batch_rows` crops at a time.

    Raises:
        tarfile.ReadError: the archive is damaged.
        ValueError: an image without labels of its own, or labels without an image.
    """
    schema = pa.schema([field for field in arrow_schema(shard_columns()) if field.name != "image"])
    images: list[bytes] = []
    rows: list[dict[str, Any]] = []
    for image, labels in _members(path):
        images.append(image)
        rows.append(labels)
        if len(rows) == batch_rows:
            yield images, [row["path"] for row in rows], pa.Table.from_pylist(rows, schema)
            images, rows = [], []
    if rows:
        yield images, [row["path"] for row in rows], pa.Table.from_pylist(rows, schema)


def read_names(path: Path) -> list[str]:
    """Return the file names of a shard's images."""
    return [labels["path"] for _, labels in _members(path)]


def _members(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with tarfile.open(path, "r:") as archive:
        members = iter(archive)
        for member in members:
            labels = next(members, None)
            key = member.name.removesuffix(_IMAGE_SUFFIX)
            if labels is None or key == member.name or labels.name != key + _LABELS_SUFFIX:
                raise ValueError(f"{member.name!r} is not followed by its labels")
            row = json.loads(_read(archive, labels))
            if not isinstance(row, dict) or row.get("key") != key or not isinstance(row.get("path"), str):
                raise ValueError(f"the labels of {member.name!r} are not its own")
            yield _read(archive, member), row


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name!r} is no file")
    return file.read()
