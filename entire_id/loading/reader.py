"""Rows of a packed data set by number: one `pread` or request a crop, no Parquet decoding, no second copy on disk."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self

import pyarrow as pa

from entire_id.images import RgbImage
from entire_id.loading.files import FetchOptions, open_files
from entire_id.loading.index import fetch_manifest, find_shards, open_index, read_meta_table
from entire_id.loading.rows import RowReader

__all__ = ["CropReader"]


class CropReader:
    """The crops of one split, in the order of the shards. Parquet and tar alike.

    Attributes:
        folder: the data set: a folder, or how messages call a place elsewhere.
        split: the split.
        manifest: what the data set holds.
        pids: (n,) int32 identities.
        camids: (n,) int32 cameras.
    """

    def __init__(self, folder: str | Path, split: str, options: FetchOptions | None = None) -> None:
        """Read the meta files of `split`.

        Args:
            folder: a folder, a repository or a URL; see `open_files`.
            split: `train`, `val`, `query` or `gallery`.
            options: how remote bytes are fetched.

        Raises:
            DatasetNotFoundError: no data set lies in `folder`.
            RepositoryNotFoundError: no such repository or revision, or it cannot be reached.
            SplitNotFoundError: it has no such split.
            ManifestError: a shard is missing or has another size: the recorded offsets cannot be trusted.
            DownloadError: a remote file cannot be fetched.
        """
        self._files = open_files(folder, options)
        self.folder = Path(self._files.name) if self._files.is_local else self._files.name
        self.split = split
        self.manifest = fetch_manifest(self._files)
        self._index = open_index(self._files, (split,), self.manifest)
        self._rows = RowReader(self._index)
        self.pids = self._index.pids
        self.camids = self._index.camids

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def keys(self) -> list[str]:
        """All n keys, made when they are first asked for."""
        return self._index.keys

    @cached_property
    def meta(self) -> pa.Table:
        """The n rows' labels and where the bytes lie: every column of `schema.meta_columns()`, read when asked for."""
        shards = find_shards(self._files.name, self.manifest, (self.split,))
        return pa.concat_tables([read_meta_table(self._files, self.manifest, shard) for shard in shards])

    def read(self, row: int) -> bytes:
        """Return the image bytes of `row` in [0, n).

        Raises:
            ManifestError: the shard ends before the image does, or images are not where meta says.
            DownloadError: they cannot be fetched.
        """
        return self._rows.read(row)

    def pixels(self, row: int) -> RgbImage:
        """Return the image of `row` in [0, n), (height, width, 3) uint8 RGB.

        Raises:
            ManifestError, DownloadError: see `read`.
            ImageDecodeError: the image does not decode.
        """
        return self._rows.decode(row, self.read(row))

    def __getstate__(self) -> dict[str, object]:
        """Arrays travel once, in the index."""
        return {name: self.__dict__[name] for name in ("_files", "folder", "split", "manifest", "_index", "_rows")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.pids, self.camids = self._index.pids, self._index.camids

    def close(self) -> None:
        """Close the shards; a later `read` opens them again."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
