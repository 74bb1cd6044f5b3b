"""Parts of a data set to train on: some cameras, some continents, a share of the people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

import numpy as np
import xxhash

from entire_id.errors import SelectionError
from entire_id.experiments.config import TrainConfig
from entire_id.loading.dataset import CropDataset
from entire_id.loading.files import open_files
from entire_id.loading.index import ShardIndex, fetch_manifest, open_index
from entire_id.loading.integers import codes_of, count_values
from entire_id.loading.joining import join
from entire_id.loading.sampler import PKSampler
from entire_id.loading.selection import Selection, named_splits
from entire_id.loading.transforms import Transform

__all__ = ["check_batches", "find_selection", "nested_share", "open_training", "training_crops", "training_split"]

_Value = TypeVar("_Value", int, str)


def nested_share(values: Iterable[_Value], share: float, seed: int) -> tuple[_Value, ...]:
    """Return a share of distinct values, sorted, at least one: the first by a keyed hash.

    A smaller share of the same values is part of a larger one, so that what is added to a training set is all that
    changes between two of them.

    >>> nested_share(range(8), 0.25, seed=0), nested_share(range(8), 0.5, seed=0)
    ((0, 6), (0, 2, 5, 6))
    """
    ordered = sorted(set(values), key=lambda value: (xxhash.xxh3_64_intdigest(f"{seed}/{value}".encode()), value))
    exact = Fraction(str(float(share)))  # as it is written: 0.07 of 100 is 7, not a trace more
    return tuple(sorted(ordered[: max(1, math.ceil(exact * len(ordered)))]))


def find_selection(config: TrainConfig, place: str) -> Selection:
    """Return which crops of a data set a training takes.

    Raises:
        DatasetNotFoundError, RepositoryNotFoundError, SplitNotFoundError, ManifestError, DownloadError,
        SelectionError: see `CropDataset`.
    """
    select = Selection(cameras=config.only_cameras or None, continents=config.only_continents or None)
    if config.people_share == 1:
        return select
    people = count_values(_sightings(config, place, select).pids)[0].tolist()
    return Selection(select.cameras, select.continents, nested_share(people, config.people_share, config.seed))


def training_split(config: TrainConfig, place: str) -> str:
    """Return which splits of a data set a training takes: those of its settings, but for a `val` that is not there.

    Papers train on `train+val` of MSMT17, and few other data sets have a `val`.

    Raises:
        DatasetNotFoundError, RepositoryNotFoundError, ManifestError, DownloadError, SelectionError: see `CropDataset`.
    """
    files = open_files(place)
    splits = named_splits(files.name, config.split)
    if len(splits) > 1 and "val" in splits and "val" not in fetch_manifest(files).splits:
        splits = tuple(split for split in splits if split != "val")
    return "+".join(splits)


def _sightings(config: TrainConfig, place: str, select: Selection) -> ShardIndex:
    """Return a crop of every person by every camera, shard by shard, that a selection takes: no more is to be known.

    Raises:
        See `find_selection`.
    """
    files, split = open_files(place), training_split(config, place)
    fetch_manifest(files)
    every = _all_sightings(place, named_splits(files.name, split), files.content)
    try:
        mask = select.mask(every, f"{files.name}: {split}")
    except SelectionError:
        CropDataset(place, split, select=select)  # says the same with the number of all crops
        raise
    return every.take(mask, None)


@lru_cache(maxsize=8)
def _all_sightings(place: str, splits: tuple[str, ...], content: str) -> ShardIndex:  # noqa: ARG001 whose they are
    """Return the same of all crops. Some hundred trainings on one data set read it once, and keep little of it."""
    index = open_index(open_files(place), splits)
    codes, _ = codes_of(index.shard_numbers, index.pids, index.camids)
    rows = np.unique(codes, return_index=True)[1]
    return ShardIndex(index.shards, index.take(rows, None).table, {})


def open_training(
    config: TrainConfig, places: Sequence[str], transform: Transform | None = None
) -> tuple[CropDataset, PKSampler]:
    """Return the crops that a training takes, joined if they are of several data sets, and its batches.

    Joined ones are called as their manifests say, so that labels say the same wherever the data sets lie.

    Args:
        config: the training, which is no stream.
        places: where its data sets lie by now, such as at a commit.
        transform: what is done to the pixels.

    Raises:
        SamplingError: there are too few people for a batch.
        SelectionError: two of the data sets are one.
        See `find_selection` for the others.
    """
    ones = {
        name: CropDataset(
            place, training_split(config, place), select=find_selection(config, place), transform=transform
        )
        for name, place in zip(_names(places), places, strict=True)
    }
    crops = join(ones) if len(ones) > 1 else next(iter(ones.values()))
    sampler = PKSampler(crops.pids, config.p, config.k, camids=crops.camids, seqs=crops.seqs, seed=config.seed)
    return crops, sampler


def _names(places: Sequence[str]) -> list[str]:
    """Return what the manifests of data sets call them; of one name, they are `name`, `name-2` ….

    Raises:
        SelectionError: two of them have the same content.
    """
    names: list[str] = []
    place_of: dict[str, str] = {}
    for place in places:
        manifest = fetch_manifest(open_files(place))
        if (other := place_of.setdefault(manifest.content_sha256, place)) != place:
            what = f"it has the same content as {other!r}, so that each of its people would be there twice"
            raise SelectionError(place, f"{what}; name one of the two")
        numbers = range(2, len(places) + 1)
        named = (manifest.name, *(f"{manifest.name}-{number}" for number in numbers))
        names.append(next(name for name in named if name not in names))
    return names


def check_batches(config: TrainConfig, places: Sequence[str]) -> ShardIndex:
    """Check that a training has its batches; return crops that show all its people, cameras and continents.

    Of one data set that was looked at before, little is read.

    Args:
        config: the training, which is no stream.
        places: see `open_training`, which raises the same.
    """
    if len(places) > 1:
        return open_training(config, places)[0].index
    index = _sightings(config, places[0], find_selection(config, places[0]))
    PKSampler(index.pids, config.p, config.k, seed=config.seed, rank=0, world_size=1)
    return index


def training_crops(config: TrainConfig, place: str) -> dict[str, int]:
    """Return how many crops, people, cameras and continents of a data set a training takes. Raises as above."""
    crops = CropDataset(place, training_split(config, place), select=find_selection(config, place))
    return {
        "crops": len(crops),
        "people": len(crops.label_map),
        "cameras": len(count_values(crops.camids)[0]),
        "continents": len(count_values(crops.continents)[0]),
    }
