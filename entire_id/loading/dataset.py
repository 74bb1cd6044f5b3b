"""A split, or train and val, as a map-style data set for training: crops by number, with labels, in any process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from entire_id.errors import CorruptCropError, ImageDecodeError
from entire_id.loading.files import FetchOptions, Files, open_files
from entire_id.loading.index import ShardIndex, open_index
from entire_id.loading.integers import count_values
from entire_id.loading.rows import RowReader
from entire_id.loading.selection import LabelMap, Selection, named_splits
from entire_id.loading.transforms import Transform, crop_generator
from entire_id.records import PART_OF_SPLIT

__all__ = ["CropDataset", "Draw", "ReadOptions"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How crops are read.

    Attributes:
        fetch: how the bytes of a remote data set are fetched.
        verify: compare every crop of this machine with its checksum; those from elsewhere always are.
        on_corrupt: what to do about a crop whose bytes are not those packed, or that does not decode: `raise`, or
            `skip`, which leaves it out of its batch with a warning.
    """

    fetch: FetchOptions = field(default_factory=FetchOptions)
    verify: bool = False
    on_corrupt: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        """Refuse a word that says neither.

        Raises:
            ValueError: `on_corrupt` is neither `raise` nor `skip`.
        """
        if self.on_corrupt not in ("raise", "skip"):
            raise ValueError(f"on_corrupt is 'raise' or 'skip', not {self.on_corrupt!r}")


class Draw(int):
    """The number of a crop that also says where its random numbers come from.

    A sampler that yields these makes a resumed run draw the same augmentations, whichever worker does the work.

    Attributes:
        seed: non-negative numbers, such as (seed, epoch, batch, place in the batch).

    Example:
        >>> draw = Draw(7, (0, 3, 12, 5))
        >>> draw == 7, draw.seed
        (True, (0, 3, 12, 5))
    """

    seed: tuple[int, ...]

    def __new__(cls, row: int, seed: tuple[int, ...]) -> Self:
        """Return `row` with its seed."""
        draw = super().__new__(cls, row)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[object, ...]:
        return Draw, (int(self), self.seed)

    def generator(self) -> np.random.Generator:
        """Return a generator that depends on the seed alone."""
        return crop_generator(self.seed)


class CropDataset:
    """Crops of a split, or of `train+val`, for `torch.utils.data.DataLoader` and any other loop. Needs no torch.

    An item is a dict:

    - `image`: what the transform returns; without one (height, width, 3) uint8 RGB; with `decode=False` the bytes;
    - `label`: class in [0, len(label_map)), -1 for junk and distractors; `pid`, `camid`: as published;
    - `row`: its number here; `key(row)` gives its name.

    Random numbers: a transform draws from the generator that it is given. Crops asked for by a `Draw` have one of their
    own, which repeats. By plain number they share one for each process, seeded as torch seeded the worker, else from
    `torch.initial_seed()`, else by chance.

    It travels to worker processes, forked or not, as a small pickle: they map its columns from a temporary file.

    Attributes:
        name: where the data set lies.
        index: every column, and where the bytes lie.
        transform: see `__init__`.
        decode: see `__init__`.
        reading: see `__init__`.
        pid_space: data sets that have it in common number their people together.
        camid_space: the same for cameras.
        label_map: which class a person is.
        num_skipped: corrupt crops that this process left out; every worker counts its own.

    Example:
        >>> from torch.utils.data import DataLoader  # doctest: +SKIP
        >>> train = CropDataset("entire-id", "train", transform=augment)  # doctest: +SKIP
        >>> train.label_map.save("model/labels.json")  # doctest: +SKIP
        >>> for batch in DataLoader(train, batch_size=64, shuffle=True, num_workers=4):  # doctest: +SKIP
        ...     loss = criterion(model(batch["image"]), batch["label"])
    """

    def __init__(  # noqa: PLR0913 what and how
        self,
        path: str | Path,
        split: str,
        *,
        select: Selection | None = None,
        labels: LabelMap | None = None,
        transform: Transform | None = None,
        decode: bool = True,
        reading: ReadOptions | None = None,
    ) -> None:
        """Read the index of `split`; no image is read yet.

        Args:
            path: a folder, a repository or a URL; see `open_files`.
            split: `train`, `val`, `query` or `gallery`; or two whose people are numbered together, `train+val` or
                `query+gallery`: the crops of one, then those of the other.
            select: which of its crops; all but junk and distractors by default.
            labels: classes that a model knows already; by default 0…n-1 over the sorted pids of the selection.
            transform: what is done to the pixels of a crop, see `Transform`; torchvision's go through `on_pil`.
            decode: give pixels; otherwise bytes, without a transform.
            reading: how crops are read.

        Raises:
            DatasetNotFoundError: no data set lies at `path`.
            RepositoryNotFoundError: no such repository or revision, or it cannot be reached.
            SplitNotFoundError: it has no such split.
            ManifestError: a file is not what the manifest says.
            DownloadError: a remote file cannot be fetched.
            SelectionError: no crop is left, `labels` do not know somebody, or number people otherwise, or splits are
                named together that number theirs apart, or one of them twice.
            ValueError: a transform of bytes.
        """
        reading = reading or ReadOptions()
        files = open_files(path, reading.fetch)
        self.name = files.name
        self.transform, self.decode, self.reading = transform, decode, reading
        splits = named_splits(self.name, split)
        index = _selected_index(files, splits, select or Selection())
        part = PART_OF_SPLIT[splits[0]]
        self.pid_space, self.camid_space = f"{files.content}/{part}", files.content
        self._set_up(index, part, labels)

    def _set_up(self, index: ShardIndex, numbering: str, labels: LabelMap | None) -> None:
        if self.transform is not None and not self.decode:
            raise ValueError("a transform takes pixels; with decode=False there are none")
        self.index = index
        pids, _ = count_values(index.pids)
        if labels is None:
            labels = LabelMap(tuple(pids[pids >= 0].tolist()), numbering)
        self.label_map = labels.checked(self.name, numbering, pids)
        self.num_skipped = 0
        self._start()

    def _start(self) -> None:
        """Make what every process has for itself."""
        self._rows = RowReader(self.index, verify=self.reading.verify)
        self._label_of = {pid: label for label, pid in enumerate(self.label_map.pids)}
        self._random: tuple[int, np.random.Generator] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Only what a worker cannot make by itself."""
        made = {"_rows", "_label_of", "_random", "labels"}
        return {name: value for name, value in self.__dict__.items() if name not in made} | {"num_skipped": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    # --- columns ---

    @property
    def pids(self) -> npt.NDArray[np.int32]:
        """(n,) int32 identities; -1 is junk, -2 a distractor without a label."""
        return self.index.pids

    @property
    def camids(self) -> npt.NDArray[np.int32]:
        """(n,) int32 cameras."""
        return self.index.camids

    @property
    def seqs(self) -> npt.NDArray[np.int32]:
        """(n,) int32 sequence numbers, -1 for none."""
        return self.index.seqs

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) int64 classes in [0, len(label_map)); -1 for junk and distractors."""
        return self.label_map.labels_of(self.index.pids)

    @property
    def continents(self) -> npt.NDArray[np.int16]:
        """(n,) int16 numbers into `continent_names`."""
        return self.index.continents

    @property
    def continent_names(self) -> tuple[str, ...]:
        """Continents of the split, sorted."""
        return self.index.continent_names

    @property
    def sources(self) -> npt.NDArray[np.int16]:
        """(n,) int16 numbers into `source_names`; 0 where nothing was joined."""
        return self.index.sources

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names that the parts of a joined data set were given; `("",)` where nothing was joined."""
        return self.index.source_names

    def key(self, row: int) -> str:
        """Return the name of the crop of that number in [0, n); the first time in a shard, its meta file is read.

        Raises:
            ManifestError: that is not what the manifest says.
        """
        return self.index.key(row)

    @property
    def keys(self) -> list[str]:
        """All n names, read anew each time: millions of them take hundreds of megabytes. Raises as `key` does."""
        return self.index.keys

    # --- items ---

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return the crop of that number, a plain one in [-n, n) or a `Draw`.

        Raises:
            IndexError: there is no such row.
            CorruptCropError: its bytes are not those packed, and crops are verified.
            ImageDecodeError: it does not decode.
            ManifestError: its shard is not that of the manifest.
            DownloadError, RepositoryNotFoundError: it cannot be fetched.
        """
        number = self._number(row)
        return self._item(row, number, self._rows.read(number))

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return several crops; from a remote place several come at once. A `DataLoader` asks for a batch like this.

        With `on_corrupt="skip"` the list may be shorter than `rows`: only a whole batch can do without a crop, so that
        `__getitem__` raises in any case.

        Raises:
            IndexError, ManifestError, DownloadError, RepositoryNotFoundError: see `__getitem__`.
            CorruptCropError, ImageDecodeError: a crop is corrupt; to be skipped, all of them are.
        """
        numbers = [self._number(row) for row in rows]
        items: list[dict[str, Any]] = []
        found = self._rows.read_many(numbers)
        for left, row, number, data in zip(range(len(rows))[::-1], rows, numbers, found, strict=True):
            try:
                if isinstance(data, CorruptCropError):
                    raise data
                items.append(self._item(row, number, data))
            except (CorruptCropError, ImageDecodeError) as error:
                if self.reading.on_corrupt == "raise" or not (left or items):
                    raise
                self.num_skipped += 1
                warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=2)
        return items

    def _number(self, row: int) -> int:
        number = int(row)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self):,}")
        return number % len(self)

    def _item(self, row: int, number: int, data: bytes) -> dict[str, Any]:
        index = self.index
        pid = index.pids.item(number)
        return {
            "image": self._image(row, number, data) if self.decode else data,
            "label": self._label_of.get(pid, -1),
            "pid": pid,
            "camid": index.camids.item(number),
            "row": number,
        }

    def _image(self, row: int, number: int, data: bytes) -> Any:  # noqa: ANN401 what the transform returns
        pixels = self._rows.decode(number, data)
        if self.transform is None:
            return pixels
        rng = row.generator() if isinstance(row, Draw) else self._process_generator()
        try:
            return self.transform(pixels, rng)
        except TypeError as error:
            error.add_note("A transform takes pixels and a generator; those of torchvision go through on_pil.")
            raise

    def _process_generator(self) -> np.random.Generator:
        if self._random is None or self._random[0] != os.getpid():
            self._random = os.getpid(), np.random.default_rng(_process_seed())
        return self._random[1]


def _process_seed() -> int | None:
    """Return what torch seeded this process with, None where there is no torch."""
    torch, data = sys.modules.get("torch"), sys.modules.get("torch.utils.data")
    worker = data.get_worker_info() if data is not None else None
    if worker is not None:
        return int(worker.seed)
    return None if torch is None else int(torch.initial_seed())


def _selected_index(files: Files, splits: tuple[str, ...], select: Selection) -> ShardIndex:
    index = open_index(files, splits)
    mask = select.mask(index, f"{files.name}: {'+'.join(splits)}")
    return index if mask.all() else index.take(mask, partial(_selected_index, files, splits, select))
