"""Rows of a packed data set by number: one `pread` a crop, no Parquet decoding, no second copy on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from entire_id.errors import ImageDecodeError, ManifestError, SplitNotFoundError
from entire_id.images import RgbImage, decode_rgb
from entire_id.schema import arrow_schema, meta_columns
from entire_id.shards.manifest import Shard, read_manifest

__all__ = ["CropReader"]


class CropReader:
    """The crops of one split, in the order of the shards. Parquet and tar alike.

    Attributes:
        folder: the data set.
        split: the split.
        manifest: what the data set holds.
        meta: (n rows) the labels and where the bytes lie: every column of `schema.meta_columns()`.
        pids: (n,) int32 identities.
        camids: (n,) int32 cameras.
        keys: n keys.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        """Read the meta files of `split`.

        Raises:
            DatasetNotFoundError: no data set lies in `folder`.
            SplitNotFoundError: it has no such split.
            ManifestError: a shard is missing or has another size: the recorded offsets cannot be trusted.
        """
        self.folder = Path(folder)
        self.split = split
        self.manifest = read_manifest(folder)
        self._shards = [shard for shard in self.manifest.shards if shard.split == split]
        if not self._shards:
            raise SplitNotFoundError(folder, split, self.manifest.splits)
        sizes = {entry.path: entry.bytes for entry in self.manifest.files}
        self.meta = pa.concat_tables([self._read_meta(shard, sizes[shard.path]) for shard in self._shards])
        self.pids: npt.NDArray[np.int32] = self.meta["pid"].to_numpy()
        self.camids: npt.NDArray[np.int32] = self.meta["camid"].to_numpy()
        self.keys: list[str] = self.meta["key"].to_pylist()
        self._offsets = self.meta["offset"].to_numpy()
        self._lengths = self.meta["length"].to_numpy()
        self._shard_of_row = np.repeat(np.arange(len(self._shards)), [shard.rows for shard in self._shards])
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, row: int) -> bytes:
        """Return the image bytes of `row` in [0, n).

        Raises:
            ManifestError: the shard ends before the image does, or its first image is not where meta says.
        """
        number = int(self._shard_of_row[row])
        length = int(self._lengths[row])
        data = os.pread(self._descriptor(number), length, int(self._offsets[row]))
        if len(data) != length:
            raise ManifestError(self._shards[number].path, "it ends before its last image does", self.folder)
        return data

    def pixels(self, row: int) -> RgbImage:
        """Return the image of `row` in [0, n), (height, width, 3) uint8 RGB.

        Raises:
            ManifestError: see `read`.
            ImageDecodeError: the image does not decode.
        """
        try:
            return decode_rgb(self.read(row))
        except OSError as error:
            raise ImageDecodeError(self.folder, self.keys[row], str(error)) from error

    def __getstate__(self) -> dict[str, object]:
        """Open files do not travel to other processes: they open the shards anew."""
        return {**self.__dict__, "_descriptors": {}}

    def close(self) -> None:
        """Close the shards; a later `read` opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_meta(self, shard: Shard, expected_bytes: int) -> pa.Table:
        path = self.folder / shard.path
        try:
            num_bytes = path.stat().st_size
            meta = pq.read_table(self.folder / shard.meta_path, partitioning=None)
        except (OSError, pa.ArrowInvalid) as error:
            raise ManifestError(path, f"cannot be read ({error})", self.folder) from error
        if num_bytes != expected_bytes or len(meta) != shard.rows:
            what = f"{num_bytes:,} bytes and {len(meta)} rows; the manifest knows another file"
            raise ManifestError(path, what, self.folder)
        if not meta.schema.equals(arrow_schema(meta_columns())):
            raise ManifestError(self.folder / shard.meta_path, "not the columns of the format", self.folder)
        return meta

    def _descriptor(self, number: int) -> int:
        """Return the open shard; its first image is checked once, for another tool may have rewritten the file."""
        if number not in self._descriptors:
            path = self.folder / self._shards[number].path
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            first = int(np.searchsorted(self._shard_of_row, number))
            data = os.pread(descriptor, int(self._lengths[first]), int(self._offsets[first]))
            if xxhash.xxh3_64_hexdigest(data) != self.meta["xxh3"][first].as_py():
                os.close(descriptor)
                raise ManifestError(path, "its first image is elsewhere; the shard was rewritten", self.folder)
            self._descriptors[number] = descriptor
        return self._descriptors[number]
