"""Parts of a data set to train on: some cameras, some continents, a share of the people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import xxhash

from entire_id.experiments.config import TrainConfig
from entire_id.loading.dataset import CropDataset
from entire_id.loading.integers import count_values
from entire_id.loading.joining import join
from entire_id.loading.sampler import PKSampler
from entire_id.loading.selection import Selection
from entire_id.loading.transforms import Transform

__all__ = ["find_selection", "nested_share", "open_training", "training_crops"]

_Value = TypeVar("_Value", int, str)


def nested_share(values: Iterable[_Value], share: float, seed: int) -> tuple[_Value, ...]:
    """Return a share of distinct values, sorted, at least one: the first by a keyed hash.

    A smaller share of the same values is part of a larger one, so that what is added to a training set is all that
    changes between two of them.

    >>> nested_share(range(8), 0.25, seed=0), nested_share(range(8), 0.5, seed=0)
    ((0, 6), (0, 2, 5, 6))
    """
    ordered = sorted(set(values), key=lambda value: (xxhash.xxh3_64_intdigest(f"{seed}/{value}".encode()), value))
    return tuple(sorted(ordered[: max(1, math.ceil(share * len(ordered)))]))


def find_selection(config: TrainConfig, place: str) -> Selection:
    """Return which crops of a data set a training takes.

    Raises:
        DatasetNotFoundError, RepositoryNotFoundError, SplitNotFoundError, ManifestError, DownloadError,
        SelectionError: see `CropDataset`.
    """
    select = Selection(cameras=config.only_cameras or None, continents=config.only_continents or None)
    if config.people_share == 1:
        return select
    people = CropDataset(place, config.split, select=select).label_map.pids
    return Selection(select.cameras, select.continents, nested_share(people, config.people_share, config.seed))


def open_training(
    config: TrainConfig, places: Sequence[str], transform: Transform | None = None
) -> tuple[CropDataset, PKSampler]:
    """Return the crops that a training takes, joined if they are of several data sets, and its batches.

    Args:
        config: the training, which is no stream.
        places: where its data sets lie by now, such as at a commit.
        transform: what is done to the pixels.

    Raises:
        SamplingError: there are too few people for a batch.
        See `find_selection` for the others.
    """
    ones = {
        path: CropDataset(place, config.split, select=find_selection(config, place), transform=transform)
        for path, place in zip(config.datasets, places, strict=True)
    }
    crops = join(ones) if len(ones) > 1 else next(iter(ones.values()))
    sampler = PKSampler(crops.pids, config.p, config.k, camids=crops.camids, seqs=crops.seqs, seed=config.seed)
    return crops, sampler


def training_crops(config: TrainConfig, place: str) -> dict[str, int]:
    """Return how many crops, people, cameras and continents of a data set a training takes. Raises as above."""
    crops = CropDataset(place, config.split, select=find_selection(config, place))
    return {
        "crops": len(crops),
        "people": len(crops.label_map),
        "cameras": len(count_values(crops.camids)[0]),
        "continents": len(count_values(crops.continents)[0]),
    }
