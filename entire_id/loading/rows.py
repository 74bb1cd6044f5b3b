"""The images' bytes by row: one `pread` or request each, once the recorded offsets are known to hold."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from entire_id.errors import CorruptCropError, ImageDecodeError
from entire_id.images import RgbImage, decode_rgb
from entire_id.loading.index import THREADS, Sample, ShardFile, ShardIndex, broken, check_size, damage, sample_checksum

__all__ = ["RowReader", "check_shard", "corrupt_crop", "read_spans"]


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
    (data,) = read_spans(shard, [(sample.start, sample.stop)], [sample_checksum(shard, sample)])
    return data is not None


def read_spans(
    shard: ShardFile, spans: Sequence[tuple[int, int]], checksums: Sequence[int] | None = None
) -> list[bytes | None]:
    """Return the bytes of (start, stop) spans that lie close together, by one request.

    Those that are not of their checksum are None; from elsewhere they are asked for twice, for they may be damaged on
    their way.

    Raises:
        ManifestError: the shard cannot be read, or ends before the last span does.
        DownloadError, RepositoryNotFoundError: it cannot be fetched.
    """
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    for _ in range(1 if shard.files.is_local else 2):
        with damage(shard.files, shard.path):
            data = shard.files.read(shard.path, first, last)
        # Copies: a view of one crop would keep the bytes of them all.
        found: list[bytes | None] = [data[start - first : stop - first] for start, stop in spans]
        if checksums is None:
            break
        pairs = zip(found, checksums, strict=True)
        found = [one if one is not None and xxhash.xxh3_64_intdigest(one) == xxh3 else None for one, xxh3 in pairs]
        if None not in found:
            break
        shard.files.forget(shard.path, first, last)
    return found


def corrupt_crop(shard: ShardFile, key: str, place: int, offset: int) -> CorruptCropError:
    """Return the error that says which crop is corrupt, by its number in its shard."""
    folder = shard.files.name if shard.files.is_local else None
    return CorruptCropError(f"{shard.files.name}/{shard.path}", key, place, offset, folder)


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
            (data,) = read_spans(shard, [(start, stop)], [index.checksum(row)])
            if data is None:
                raise corrupt_crop(shard, index.key(row), index.places.item(row), start)
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

    def decode(self, row: int, data: bytes) -> RgbImage:
        """Return the pixels of the image bytes of `row`, (height, width, 3) uint8 RGB.

        Raises:
            ImageDecodeError: they do not decode.
        """
        try:
            return decode_rgb(data)
        except OSError as error:
            index = self.index
            shard = index.shards[index.shard_numbers.item(row)]
            where = f"row {index.places.item(row)}, at byte {index.offsets.item(row):,} of {shard.path}"
            raise ImageDecodeError(shard.files.name, index.key(row), f"{error}; {where}") from error

    def _try(self, row: int) -> bytes | CorruptCropError:
        try:
            return self.read(row)
        except CorruptCropError as error:
            return error

    def _check(self, number: int) -> None:
        check_shard(self.index.shards[number])
        self._is_checked[number] = 1
