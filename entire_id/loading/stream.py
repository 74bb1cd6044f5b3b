"""Identity-balanced batches from shards that are read as they are needed: nothing is downloaded as a whole."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from entire_id.errors import (
    CorruptCropError,
    EntireIdError,
    ImageDecodeError,
    SamplingError,
    SelectionError,
)
from entire_id.images import RgbImage, decode_rgb
from entire_id.loading.dataset import ReadOptions
from entire_id.loading.files import open_files
from entire_id.loading.groups import check_at_least
from entire_id.loading.handover import SharedImages, by_value
from entire_id.loading.index import fetch_manifest, find_shards
from entire_id.loading.lanes import EpochDraw, Unit, deal_units, draw_units, even_pool_rows
from entire_id.loading.sampler import check_people, check_state, place_of_process
from entire_id.loading.selection import LabelMap, Selection, check_known, named_splits
from entire_id.loading.transforms import Transform, stacked
from entire_id.loading.units import UnitReader
from entire_id.loading.waiting import Batch, Epoch
from entire_id.records import PART_OF_SPLIT
from entire_id.shards.manifest import Shard

__all__ = ["PKStream", "StreamOptions"]

# Places in what all processes share: what to iterate; batches of it that are done; lanes that it must have, 0 for any;
# lanes that the last iteration had; workers that began one since it was last said what to iterate.
_EPOCH, _SKIP, _FIXED_LANES, _LANES, _WORKERS = range(5)
# Places in what each worker writes, and others read: batches that it handed out in this iteration; the number of the
# epoch that it iterated to its end, counted from 1; for which loop that was.
_HANDED, _ENDED, _LOOP = range(3)
_MOST_WORKERS = 1_024  # of one rank
_DRAWN_BY = ("pool_rows", "unit_groups", "uniform")  # options that decide which batches there are


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream reads and mixes.

    Attributes:
        pool_rows: crops that wait in the pool of a lane; more mix better and take more memory, about 8 kB each. Where
            there are several lanes, as many as two units and a batch hold wait at least.
        unit_groups: row groups of one shard that enter a pool together, at least 1: with 1 people mix best in a short
            training, with 4 the crops of a person do in a long one.
        lanes: pools that take turns, over all ranks and workers; None for one a worker. Ranks × workers must divide
            it. The batches of an epoch are the same for every number of ranks and workers that does.
        prefetch_units: units that each lane begins to read before they are needed.
        uniform: batches of p · k crops drawn uniformly, junk too if it is selected, instead of K crops of P people.
    """

    pool_rows: int = 8_192
    unit_groups: int = 4
    lanes: int | None = None
    prefetch_units: int = 2
    uniform: bool = False


class PKStream(IterableDataset[dict[str, Any]]):
    """Batches of P identities × K crops from shards anywhere, for a `DataLoader` with `batch_size=None`.

    In an epoch every crop is seen once; where K does not divide the crops of an identity that arrive together, others
    of them fill up its last group. Nobody is in a batch twice, and all batches hold P identities, but for the last ones
    of an epoch. All ranks take the same number of batches.

    A batch is a dict of B ≤ P · K crops, those of an identity side by side:

    - `image`: (B, …) what the transform returns, stacked; a list of pixels or bytes where there is none;
    - `label`, `pid`, `camid`: (B,) int64; labels are classes in [0, len(label_map)), -1 for junk;
    - `row`: (B,) int64, number of the crop in the split or splits, as in `CropDataset` without a selection;
    - `padded`: (B,) bool, whether the crop only fills up its group and is counted elsewhere.

    The batches follow from the content, seed, epoch, options and the number of lanes: a run that was stopped after any
    batch goes on with the same ones. Each whole iteration is an epoch further; `set_epoch` goes to any.

    Attributes:
        name: where the data set lies.
        label_map: which class a person is.
        rank: of this process.
        world_size: number of processes.

    Example:
        >>> from torch.utils.data import DataLoader  # doctest: +SKIP
        >>> stream = PKStream("owner/entire-id", "train", p=16, k=4, transform=augment)  # doctest: +SKIP
        >>> loader = DataLoader(stream, batch_size=None, num_workers=4)  # doctest: +SKIP
        >>> for epoch in range(120):  # doctest: +SKIP
        ...     stream.set_epoch(epoch)
        ...     for batch in loader:
        ...         loss = criterion(model(batch["image"]), batch["label"])
    """

    def __init__(  # noqa: PLR0913 what and how
        self,
        path: str | Path,
        split: str,
        p: int = 16,
        k: int = 4,
        *,
        seed: int = 0,
        select: Selection | None = None,
        labels: LabelMap | None = None,
        transform: Transform | None = None,
        decode: bool = True,
        reading: ReadOptions | None = None,
        options: StreamOptions | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Read the manifest; shards are read when batches are asked for.

        Args:
            path: a folder, a repository or a URL; see `open_files`.
            split: `train`, `val`, `query` or `gallery`; or `train+val`, see `CropDataset`.
            p: identities in a batch.
            k: crops of each.
            seed: of every draw, at least 0.
            select: which crops; all but junk and distractors by default.
            labels: classes that a model knows already; by default 0…n-1 over the sorted pids of the manifest that the
                selection's continents and pids leave.
            transform: what is done to the pixels of a crop, see `Transform`; torchvision's go through `on_pil`.
            decode: give pixels; otherwise bytes, without a transform.
            reading: how crops are read. A corrupt crop that is to be skipped gives its place to another of its group,
                with a warning, and is counted by `num_skipped`.
            options: how the stream reads and mixes.
            rank: of this process; see `PKSampler`.
            world_size: number of processes.

        Raises:
            DatasetNotFoundError: no data set lies at `path`.
            RepositoryNotFoundError: no such repository or revision, or it cannot be reached.
            SplitNotFoundError: it has no such split.
            ManifestError: its manifest is damaged.
            DownloadError: it cannot be fetched.
            SelectionError: nobody is left, `labels` do not know somebody, or number people otherwise, or splits cannot
                be named together.
            SamplingError: p, k, seed or an option is out of its range, there are fewer than p identities, or so few row
                groups that lanes stay empty, or the ranks do not divide the lanes. Workers are counted when they begin.
            ValueError: a transform of bytes.
        """
        super().__init__()
        if transform is not None and not decode:
            raise ValueError("a transform takes pixels; with decode=False there are none")
        self._reading, self._options = reading or ReadOptions(), options or StreamOptions()
        self._select = select or Selection()
        self._files = open_files(path, self._reading.fetch)
        self._manifest = fetch_manifest(self._files)
        self._transform, self._decode = transform, decode
        self.name = self._files.name
        splits = named_splits(self.name, split)
        self._split = "+".join(splits)
        self._shards = find_shards(self.name, self._manifest, splits)
        self.rank, self.world_size = place_of_process(rank, world_size)
        people = self._people()
        self._row_groups = self._chosen_groups(people)
        numbering, pids = PART_OF_SPLIT[splits[0]], np.array(sorted(people), np.int64)
        if labels is None:
            labels = LabelMap(tuple(pids.tolist()), numbering)
        self.label_map = labels.checked(self.name, numbering, pids)
        self._p, self._k, self._seed = p, k, seed
        self._check(len(people))
        # Here, not in the workers, whose errors hide in a traceback: as far as it can be told before there are any.
        self._check_lanes(self._options.lanes or self.world_size, self.world_size)
        # Seen by workers that live longer than an epoch, too.
        self._shared = torch.zeros(5, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._workers = torch.zeros((_MOST_WORKERS, 3), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._skipped = torch.zeros(_MOST_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._reader: tuple[int, UnitReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Only what another process cannot make by itself."""
        return self.__dict__ | {"_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for shared in (self._shared, self._workers, self._skipped):  # a copy shares with its own workers
            shared.share_memory_()

    @property
    def num_skipped(self) -> int:
        """Corrupt crops that were left out since the stream was made, by this process and by all its workers."""
        return int(self._skipped.sum())

    def _people(self) -> set[int]:
        """Return who can be in a batch, as far as the manifest tells.

        Raises:
            SelectionError: the selection asks for what is not there.
        """
        select, where = self._select, f"{self.name}: {self._split}"
        check_known(where, "continent", select.continents, [shard.continent for shard in self._shards])
        check_known(where, "person", select.pids, [pid for shard in self._shards for pid in shard.pids])
        people = {pid for shard in self._shards if self._is_there(shard) for pid in shard.pids}
        return people if select.pids is None else people & set(select.pids)

    def _is_there(self, shard: Shard) -> bool:
        """Tell whether a shard is of a continent of the selection."""
        return self._select.continents is None or shard.continent in self._select.continents

    def _chosen_groups(self, people: set[int]) -> list[tuple[int, ...]]:
        """Return the row groups of each shard, none where it holds no crop of the selection."""

        def is_chosen(shard: Shard) -> bool:
            return self._is_there(shard) and (self._select.pids is None or not people.isdisjoint(shard.pids))

        return [shard.row_groups if is_chosen(shard) else () for shard in self._shards]

    def _check(self, num_people: int) -> None:
        options = self._options
        lanes = 1 if options.lanes is None else options.lanes
        sizes = {"pool_rows": options.pool_rows, "unit_groups": options.unit_groups, "lanes": lanes}
        check_at_least(1, p=self._p, k=self._k, **sizes)
        check_at_least(0, seed=self._seed, prefetch_units=options.prefetch_units)
        if not options.uniform:
            check_people(num_people, self._p, f"of {self._split!r} in the selection")

    def _check_lanes(self, num_lanes: int, num_readers: int) -> None:
        """Check that lanes can be dealt to their readers, of which each rank has one at least, and fed.

        Raises:
            SamplingError: they cannot.
        """
        if num_lanes % num_readers:
            what = f"{self.world_size} ranks × {num_readers // self.world_size} workers do not divide {num_lanes} lanes"
            raise SamplingError(f"{what}; choose numbers that do")
        unit_groups = self._options.unit_groups
        num_units = sum(-(-len(row_groups) // unit_groups) for row_groups in self._row_groups)
        if num_units < num_lanes:
            what = f"{num_units} units of {unit_groups} row groups cannot feed {num_lanes} lanes"
            raise SamplingError(f"{what}; use fewer ranks, workers or lanes, or a smaller unit_groups")

    # --- where it is ---

    def set_epoch(self, epoch: int) -> None:
        """Draw `epoch`, at least 0, from the next iteration on.

        A resumed epoch goes on where it was if `epoch` is the same; else it is drawn whole.
        """
        check_at_least(0, epoch=epoch)
        if epoch != self._shared[_EPOCH]:
            self._shared[_SKIP] = 0
        self._shared[_EPOCH] = epoch
        self._shared[_WORKERS] = 0
        self._workers.zero_()

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where this epoch is, as plain values; the same on every rank.

        Args:
            num_batches: batches that the training loop has finished since it began to iterate. Workers are ahead of the
                loop, so only the loop knows. None counts what was handed out, which is right without workers.

        Raises:
            SamplingError: there are workers, and num_batches is not given; or it is not in 0…n, the batches that were
                handed out since. Where none were, its upper bound is not known.
        """
        if num_batches is None and self._shared[_WORKERS]:
            raise SamplingError(
                "workers are ahead of the loop: give the batches it has finished, state_dict(num_batches)"
            )
        num_handed = int(self._iterating()[:, _HANDED].sum())
        num_done = num_handed if num_batches is None else num_batches
        check_at_least(0, num_batches=num_done)
        if num_handed and num_done > num_handed:
            raise SamplingError(f"num_batches {num_batches!r} is above {num_handed}, the batches that were handed out")
        epoch, skip, _, lanes, _ = self._shared.tolist()
        place = {"epoch": epoch, "num_batches": skip + num_done, "world_size": self.world_size, "lanes": lanes}
        return place | self._facts()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Another number of ranks or workers will do, if the lanes can be dealt to them.

        Raises:
            SamplingError: the state is not of such a stream of the same content, of lanes that cannot be dealt to these
                ranks, or of a place in the epoch that this number of ranks does not have.
        """
        check_state(state, "stream", ("epoch", "num_batches", "world_size", "lanes"), self._facts())
        if self._options.lanes not in (None, state["lanes"]) and state["lanes"]:
            raise SamplingError(f"the state is of {state['lanes']} lanes, this stream has {self._options.lanes}")
        self._check_lanes(state["lanes"] or self.world_size, self.world_size)
        num_done, rest = divmod(state["num_batches"] * state["world_size"], self.world_size)
        if rest:
            what = f"{state['num_batches']} batches on each of {state['world_size']} ranks"
            raise SamplingError(f"the state is after {what}, which is no whole number of steps of {self.world_size}")
        self._shared[:] = torch.tensor([state["epoch"], num_done, state["lanes"], state["lanes"], 0])
        self._workers.zero_()

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a state to fit."""
        options = {name: value for name, value in asdict(self._options).items() if name in _DRAWN_BY}
        select = {
            name: np.unique(list(value)).tolist() if isinstance(value, Collection) else value
            for name, value in asdict(self._select).items()
        }
        who = {"split": self._split, "p": self._p, "k": self._k, "seed": self._seed}
        return {"content": self._manifest.content_sha256, **who, **options, "select": select}

    # --- batches ---

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return the batches of this rank, or of this worker of it, from where the epoch stands now.

        If that was iterated to its end, they are those of the next one.

        They raise:
            SamplingError: the lanes cannot be dealt to the ranks and workers, or there are too few row groups for them.
            SelectionError: no crop is left.
            ManifestError: a shard is not that of the manifest.
            CorruptCropError: a crop is not what was packed, and crops are verified.
            ImageDecodeError: a crop does not decode.
            DownloadError, RepositoryNotFoundError: a file cannot be fetched.
        """
        number, num_workers, _ = _place_of_worker()
        self._move_on()
        self._workers[number] = 0
        self._shared[_WORKERS] = num_workers
        return self._iterated(self._draw(), int(self._shared[_SKIP]))

    def _move_on(self) -> None:
        """Go to the next epoch if all workers iterated this one to its end, in the same loop.

        The workers of the next loop come here at any time, and none waits for another: the first one moves on, and what
        they ended is this epoch no more, so that for the others there is nothing to do.
        """
        epoch, ended = int(self._shared[_EPOCH]), self._iterating()[:, _ENDED:].tolist()
        if ended[0][0] == epoch + 1 and all(place == ended[0] for place in ended):
            self._shared[_SKIP] = 0
            self._shared[_EPOCH] = epoch + 1

    def _iterating(self) -> torch.Tensor:
        """Return what the workers of the last iteration wrote, or this process if it had none."""
        iterating: torch.Tensor = self._workers[: max(int(self._shared[_WORKERS]), 1)]
        return iterating

    def _iterated(self, draw: EpochDraw, skip: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch, but for the first `skip` of this rank."""
        number, num_workers, loop = _place_of_worker()
        num_workers = max(num_workers, 1)
        units = self._units(draw, num_workers)
        self._shared[_LANES] = len(units)
        # A loader asks worker 0 first; when an epoch is resumed it is the next batch's turn.
        turn = (number + skip) % num_workers
        own = range(self.rank + turn * self.world_size, len(units), num_workers * self.world_size)
        num_done = len(range(turn, skip, num_workers))
        options = self._options
        draw = replace(draw, pool_rows=even_pool_rows(draw, units))
        epoch = Epoch(draw, units, self._own_reader(), options.prefetch_units, uniform=options.uniform)
        try:
            for batch in self._batches(epoch, own, num_done):
                self._workers[number, _HANDED] += 1
                yield batch
            self._workers[number, _ENDED:] = torch.tensor([draw.epoch + 1, loop])
        except EntireIdError:
            self._reader = None  # what it failed to read may be there the next time
            raise
        finally:
            epoch.close()

    def _own_reader(self) -> UnitReader:
        """Return the reader of this process: it keeps the labels for the next epoch."""
        if self._reader is None or self._reader[0] != os.getpid():  # forked: its locks may be held for ever
            reader = UnitReader(self._files, self._manifest, self._shards, self._select, verify=self._reading.verify)
            self._reader = os.getpid(), reader
        return self._reader[1]

    def _draw(self) -> EpochDraw:
        """Return what this epoch is drawn by; in a uniform one every crop is an identity of its own."""
        p, k = (self._p * self._k, 1) if self._options.uniform else (self._p, self._k)
        options = self._options
        return EpochDraw(p, k, options.pool_rows, options.unit_groups, self._seed, int(self._shared[_EPOCH]))

    def _units(self, draw: EpochDraw, num_workers: int) -> list[list[Unit]]:
        """Return the units of each lane."""
        num_readers = self.world_size * num_workers
        num_lanes = self._options.lanes or int(self._shared[_FIXED_LANES]) or num_readers
        self._check_lanes(num_lanes, num_readers)
        return deal_units(draw_units(self._row_groups, draw), num_lanes)

    def _batches(self, epoch: Epoch, own: Sequence[int], num_done: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of some lanes, which take turns, but for the first `num_done`."""
        lanes = [epoch.batches(lane, len(range(place, num_done, len(own)))) for place, lane in enumerate(own)]
        for turn in itertools.count(num_done):
            batch = next(lanes[turn % len(lanes)], None)
            if batch is None:  # all lanes have the same number of batches
                break
            yield self._made(batch, epoch)
        if not turn:
            raise SelectionError(f"{self.name}: {self._split}", f"no crop is left by {self._select}")

    def _made(self, batch: Batch, epoch: Epoch) -> dict[str, Any]:
        """Return a batch with its images decoded; corrupt ones are replaced, if they are to be skipped."""
        bad: dict[int, EntireIdError] = {}
        images = self._images(batch, epoch, bad)
        columns, is_padded = batch.columns, batch.is_padded
        if bad:
            kept, source = _replaced(bad, len(batch.crops), epoch.draw.k)
            shown = (source - np.searchsorted(sorted(bad), source)).tolist()
            images = [images[place] for place in shown] if isinstance(images, list) else images[shown]
            columns = columns[:, source]
            is_padded = (is_padded | np.isin(np.arange(len(is_padded)), list(bad)))[kept]
        if isinstance(images, list) and self._transform and isinstance(images[0], torch.Tensor):
            images = torch.stack(images)
        pid, camid, row, _ = columns.copy()
        labels = {"label": self.label_map.labels_of(pid), "pid": pid, "camid": camid, "row": row, "padded": is_padded}
        if get_worker_info() is None:
            return {"image": images, **labels}
        return {"image": images, **{name: by_value(array) for name, array in labels.items()}}

    def _images(self, batch: Batch, epoch: Epoch, bad: dict[int, EntireIdError]) -> Any:  # noqa: ANN401
        """Return the images of a batch but for corrupt ones, whose errors are put down in `bad` by their places."""

        def good() -> Iterator[Any]:
            for place in range(len(batch.crops)):
                image = self._image(batch, place, epoch)
                if isinstance(image, EntireIdError):
                    bad[place] = image
                    self._skipped[_place_of_worker()[0]] += 1
                    warnings.warn(f"left out: {image}", RuntimeWarning, stacklevel=2)
                else:
                    yield image
            if len(bad) == len(batch.crops):
                raise bad[0]

        if self._transform is None:
            return list(good())
        if get_worker_info() is None:
            return stacked(good(), len(batch.crops))
        shared = SharedImages()
        images = stacked(good(), len(batch.crops), shared.empty)
        tensor = shared.tensor(len(images)) if isinstance(images, np.ndarray) else None
        return images if tensor is None else tensor

    def _image(self, batch: Batch, place: int, epoch: Epoch) -> Any:  # noqa: ANN401 what the transform returns
        """Return the image of a crop, or the error if it is corrupt and to be skipped."""
        crop = batch.crops[place]
        try:
            if isinstance(crop, EntireIdError):
                raise crop
            if not self._decode:
                return crop
            pixels = self._pixels(crop, batch, place, epoch)
        except (CorruptCropError, ImageDecodeError) as error:
            if self._reading.on_corrupt == "raise":
                raise
            return error
        if self._transform is None:
            return pixels
        rng = epoch.draw.image_generator(batch.lane, batch.number, place)
        return self._transform(pixels, rng)

    def _pixels(self, crop: bytes, batch: Batch, place: int, epoch: Epoch) -> RgbImage:
        try:
            return decode_rgb(crop)
        except OSError as error:
            _, _, number, shard = batch.columns[:, place].tolist()
            row = number - epoch.reader.first_row(shard)
            key, where = epoch.reader.key(shard, row), f"row {row} of {self._shards[shard].path}"
            raise ImageDecodeError(self.name, key, f"{error}; {where}") from error


def _place_of_worker() -> tuple[int, int, int]:
    """Return the number of this worker, how many there are, 0 for none, and a number that all of a loop share."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers, worker.seed - worker.id) if worker else (0, 0, 0)


def _replaced(bad: Collection[int], num_crops: int, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which places of a batch are kept, and whose image each of them shows.

    A corrupt crop gives its place to the next one of its group; a group of nothing else goes.
    """
    kept: list[int] = []
    source: list[int] = []
    for start in range(0, num_crops, k):
        group = range(start, min(start + k, num_crops))
        good = [place for place in group if place not in bad]
        if good:
            kept += group
            source += [good[place % len(good)] if place in bad else place for place in group]
    return np.array(kept), np.array(source)
