"""Does anything of crops that were taken out remain in a data set? Its rows and its bytes are searched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from entire_id.records import PART_OF_SPLIT, Person
from entire_id.shards.check import read_labels, read_meta
from entire_id.shards.manifest import Shard
from entire_id.shards.packed import read_image, rows_of

__all__ = ["Removed", "ShardSearch", "Trace", "find_in_text", "find_needles", "search_shard", "trace_of"]

_HEAD_BYTES = 8
_NEEDLE_BYTES = 16
_PLACES = 32  # of an image that are looked at for a slice to know it by
_WINDOW_BYTES = 16 << 20


class Trace(NamedTuple):
    """What a removed image is known by.

    Attributes:
        xxh3: its checksum, as in the meta files.
        sha256: digest of its bytes.
        length: their number.
        start: where `piece` starts in them.
        piece: 16 of them that hardly stand anywhere else.
    """

    xxh3: str
    sha256: bytes
    length: int
    start: int
    piece: bytes


def trace_of(image: bytes, xxh3: str) -> Trace:
    """Return what an image is known by. Its piece is the most varied of some: not a header, nor a plain surface."""
    last = max(0, len(image) - _NEEDLE_BYTES)
    starts = sorted({last * number // _PLACES for number in range(1, _PLACES)}, reverse=True)
    start = max(starts, key=lambda place: len({*image[place : place + _NEEDLE_BYTES]}))
    return Trace(xxh3, hashlib.sha256(image).digest(), len(image), start, image[start : start + _NEEDLE_BYTES])


@dataclass(frozen=True, slots=True)
class Removed:
    """What must not be there any more.

    Attributes:
        people: who was taken out whole.
        keys: all crops that were taken out.
        traces: their images, each once.
    """

    people: frozenset[Person]
    keys: frozenset[str]
    traces: tuple[Trace, ...]


@dataclass(frozen=True, slots=True)
class ShardSearch:
    """All that a process must know to search one shard.

    Attributes:
        folder: the data set.
        shard: what its manifest says of the shard.
        format: `parquet` or `webdataset`.
        removed: what must not be there.
        is_new: it was written anew, so its bytes are searched, too.
    """

    folder: Path
    shard: Shard
    format: str
    removed: Removed
    is_new: bool


def search_shard(task: ShardSearch) -> list[str]:
    """Return what of the removed crops is in a shard or its meta file: sentences; none, as it should be.

    For every shard, the meta file has no removed key and person, and no row whose checksum and image are those of a
    removed crop. For a new shard the labels in it have none, either, and its bytes and those of its meta file are
    searched as they lie there: no removed image is in them whole, no piece of one is outside the images that remain,
    and no removed key is there, unless it is less than eight bytes or part of a key that remains.
    """
    found = list(_search_rows(task))
    if task.is_new and not found:
        found += _search_labels(task)
        for path in (task.shard.path, task.shard.meta_path):
            found += _search_bytes(task, path)
    return found


def _search_rows(task: ShardSearch) -> Iterator[str]:
    shard, removed = task.shard, task.removed
    meta = read_meta(task.folder / shard.meta_path)
    if meta is None:
        yield f"{shard.meta_path} cannot be read"
        return
    digests = {trace.xxh3: set[bytes]() for trace in removed.traces}
    for trace in removed.traces:
        digests[trace.xxh3].add(trace.sha256)
    for row, pid in zip(rows_of(meta), meta["pid"].to_pylist(), strict=True):
        if row.key in removed.keys or Person(PART_OF_SPLIT[shard.split], pid) in removed.people:
            yield f"{shard.meta_path} has row {row.row} of it"
        if row.xxh3 in digests:
            sha256 = hashlib.sha256(read_image(task.folder, shard, row)).digest()
            if sha256 in digests[row.xxh3]:
                yield f"{shard.path} has an image of it, in row {row.row}"


def _search_labels(task: ShardSearch) -> Iterator[str]:
    labels = read_labels(task.folder / task.shard.path, task.format)
    if labels is None:
        yield f"{task.shard.path} cannot be read"
        return
    part = PART_OF_SPLIT[task.shard.split]
    for key, pid in zip(labels["key"].to_pylist(), labels["pid"].to_pylist(), strict=True):
        if key in task.removed.keys or Person(part, pid) in task.removed.people:
            yield f"{task.shard.path} has labels of it"


def _search_bytes(task: ShardSearch, path: str) -> Iterator[str]:
    meta = read_meta(task.folder / task.shard.meta_path)
    rows = [] if meta is None else list(rows_of(meta))
    traces = task.removed.traces
    keys = _telling_keys(task, (row.key for row in rows))
    needles = [trace.piece for trace in traces] + [key.encode() for key in keys]
    images = sorted(rows, key=lambda row: row.offset) if path == task.shard.path else []
    starts = np.array([row.offset for row in images], np.int64)
    with (task.folder / path).open("rb") as file:
        for place, number in find_needles(task.folder / path, needles):
            near = int(np.searchsorted(starts, place, side="right")) - 1
            is_inside = near >= 0 and place < images[near].offset + images[near].length
            if number >= len(traces):
                if not is_inside:
                    yield f"{path} has a key of it at byte {place}"
                continue
            trace = traces[number]
            file.seek(max(0, place - trace.start))
            is_whole = hashlib.sha256(file.read(trace.length)).digest() == trace.sha256
            if is_whole and is_inside:
                yield f"the image of {images[near].key!r} holds the bytes of one that is to go; take that out, too"
            elif is_whole or not is_inside:
                yield f"{path} has bytes of an image of it at {place}"


def _telling_keys(task: ShardSearch, remaining: Iterable[str]) -> list[str]:
    """Return the removed keys of the split whose bytes stand in no key that remains, and are enough to search for."""
    text = "\n".join(remaining)
    prefix = f"{task.shard.split}/"
    keys = (key for key in task.removed.keys if key.startswith(prefix))
    return [key for key in keys if len(key.encode()) >= _HEAD_BYTES and key not in text]


def find_needles(path: Path, needles: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (byte, number of the needle) for every place of a file where one of `needles` starts.

    Each is eight bytes or more. A look at two bytes, and then at eight, leaves few places to compare.
    """
    ends: dict[int, list[int]] = {}
    for number, needle in enumerate(needles):
        ends.setdefault(int.from_bytes(needle[-_HEAD_BYTES:], "little"), []).append(number)
    words = np.array(sorted(ends), np.uint64)
    if not len(words) or path.stat().st_size < _HEAD_BYTES:
        return
    is_start = np.zeros(1 << 16, bool)
    is_start[(words & np.uint64(0xFFFF)).astype(np.int64)] = True
    data = np.memmap(path, np.uint8, "r")
    for first in range(0, len(data) - _HEAD_BYTES + 1, _WINDOW_BYTES):
        window = np.array(data[first : first + _WINDOW_BYTES + _HEAD_BYTES - 1])
        for place, word in _find_words(window, is_start, words):
            stop = first + place + _HEAD_BYTES
            for number in ends[word]:
                start = stop - len(needles[number])
                if start >= 0 and data[start:stop].tobytes() == needles[number]:
                    yield start, number


def _find_words(
    window: npt.NDArray[np.uint8], is_start: npt.NDArray[np.bool_], words: npt.NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    """Yield where one of the sorted `words` of eight bytes stands in `window`, and which."""
    num_places = len(window) - _HEAD_BYTES + 1
    pairs = window[:num_places].astype(np.uint16)
    pairs |= window[1 : num_places + 1].astype(np.uint16) << np.uint16(8)
    places = np.flatnonzero(is_start[pairs])
    found = np.zeros(len(places), np.uint64)
    for byte in range(_HEAD_BYTES):
        found |= window[places + byte].astype(np.uint64) << np.uint64(8 * byte)
    hits = words[np.minimum(np.searchsorted(words, found), len(words) - 1)] == found
    yield from zip(places[hits].tolist(), found[hits].tolist(), strict=True)


def find_in_text(text: str, removed: Removed) -> Iterator[str]:
    """Yield the keys and people of `removed` that a text names."""
    for name in [*removed.keys, *map(str, removed.people)]:
        if name in text and re.search(rf"(?<![\w/%-]){re.escape(name)}(?![\w/%-])", text):
            yield name
