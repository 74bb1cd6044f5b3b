"""The images' bytes by row: one `pread` or request each, once the recorded offsets are known to hold."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from entire_id.errors import CorruptCropError
from entire_id.loading.index import THREADS, Sample, ShardFile, ShardIndex, broken, check_size, damage, sample_checksum

__all__ = ["RowReader", "check_shard"]


def check_shard(shard: ShardFile) -> None:
    """Check that recorded offsets can be trusted: the size of the shard, and where its first image lies.

    Another tool may have rewritten the file. Once for each shard and process, before the first read, is enough. Where
    the first image is only corrupt, the last or one in the middle is still in its place.

    Raises:
        ManifestError: they cannot.
        DownloadError, RepositoryNotFoundError: it cannot be fetched.
    """
    first, *others = shard.samples
    is_there = _is_there(shard, first)
    check_size(shard)  # a remote place has told the size by now
    if not is_there and not any(_is_there(shard, sample) for sample in others):
        raise broken(shard.files, shard.path, "its images are elsewhere; the shard was rewritten")


def _is_there(shard: ShardFile, sample: Sample) -> bool:
    return _checked_read(shard, sample.start, sample.stop, sample_checksum(shard, sample)) is not None


def _checked_read(shard: ShardFile, start: int, stop: int, xxh3: int) -> bytes | None:
    """Return bytes, None if they are not those of the checksum; those from elsewhere are asked for twice."""
    for _ in range(1 if shard.files.is_local else 2):
        with damage(shard.files, shard.path):
            data = shard.files.read(shard.path, start, stop)
        if xxhash.xxh3_64_intdigest(data) == xxh3:
            return data
        shard.files.forget(shard.path, start, stop)
    return None


class RowReader:
    """The image bytes of the rows of an index. Every shard is checked before its first use; see `check_shard`."""

    def __init__(self, index: ShardIndex, *, verify: bool = False) -> None:
        """Note what to read.

        Args:
            index: the rows.
            verify: compare every image with its checksum; those from elsewhere always are.
        """
        self.index = index
        self._is_local = all(shard.files.is_local for shard in index.shards)
        self._verify = verify or not self._is_local
        self._is_checked = bytearray(len(index.shards))

    def __getstate__(self) -> dict[str, object]:
        """Another process may see other files: it checks anew."""
        return {**self.__dict__, "_is_checked": bytearray(len(self.index.shards))}

    def read(self, row: int) -> bytes:
        """Return the image bytes of `row` in [0, n).

        Raises:
            ManifestError: the shard is not that of the manifest.
            CorruptCropError: the bytes are not those packed, and it was to be verified.
            DownloadError, RepositoryNotFoundError: they cannot be fetched.
        """
        index = self.index
        number = index.shard_numbers.item(row)
        shard = index.shards[number]
        if not self._is_checked[number]:
            self._check(number)
        start = index.offsets.item(row)
        stop = start + index.lengths.item(row)
        if self._verify:
            data = _checked_read(shard, start, stop, index.checksum(row))
            if data is None:
                raise self.corrupt(row)
            return data
        try:
            return shard.files.read(shard.path, start, stop)
        except (OSError, EOFError):
            with damage(shard.files, shard.path):
                raise

    def read_many(self, rows: Sequence[int]) -> list[bytes | CorruptCropError]:
        """Return the image bytes of rows, in their order, or in place of corrupt ones the error that `read` raises.

        Several requests to a remote place run at once.

        Raises:
            ManifestError, DownloadError, RepositoryNotFoundError: see `read`.
        """
        if self._is_local:
            return [self._try(row) for row in rows]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._try, rows))

    def _try(self, row: int) -> bytes | CorruptCropError:
        try:
            return self.read(row)
        except CorruptCropError as error:
            return error

    def corrupt(self, row: int) -> CorruptCropError:
        """Return the error that says which crop is corrupt, by its number in its shard."""
        shard = self.index.shards[self.index.shard_numbers.item(row)]
        folder = shard.files.name if shard.files.is_local else None
        where = f"{shard.files.name}/{shard.path}"
        place, offset = self.index.places.item(row), self.index.offsets.item(row)
        return CorruptCropError(where, self.index.key(row), place, offset, folder)

    def _check(self, number: int) -> None:
        check_shard(self.index.shards[number])
        self._is_checked[number] = 1
