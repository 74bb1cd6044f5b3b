"""Which crops to train on, and which class each person is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from entire_id.errors import SelectionError
from entire_id.loading.index import ShardIndex
from entire_id.loading.integers import count_values
from entire_id.records import JUNK_PID, PART_OF_SPLIT

__all__ = ["LabelMap", "Selection", "check_known", "named_splits"]

_SHOWN = 8  # numbers that a message lists


def named_splits(name: str, split: str) -> tuple[str, ...]:
    """Return the splits that `split` names, such as `train` or `train+val`, whose people are numbered together.

    Args:
        name: of the data set, for messages.
        split: one name, or several with `+` between them. Whether there are such splits is not looked at.

    Raises:
        SelectionError: one is named twice, or their people are numbered apart.

    Example:
        >>> named_splits("msmt17", "train + val")
        ('train', 'val')
    """
    splits = tuple(one.strip() for one in split.split("+"))
    for place, one in enumerate(splits):
        if one in splits[:place]:
            raise SelectionError(name, f"split {split!r} names {one!r} twice; name it once")
    if len({PART_OF_SPLIT[one] for one in splits if one in PART_OF_SPLIT}) > 1:
        what = f"split {split!r} is of two parts, and a number may mean somebody else in each"
        raise SelectionError(name, f"{what}. Open {' and '.join(splits)} by themselves, then entire_id.join them")
    return splits


@dataclass(frozen=True, slots=True)
class Selection:
    """Which crops of a split to take: those that meet every condition.

    Attributes:
        cameras: of these cameras; all by default.
        continents: from these continents; all by default.
        pids: of these people; all by default.
        min_width: at least so wide, px.
        min_height: at least so high, px.
        keep_junk: junk (pid -1) and distractors (pid -2) too, which have label -1.
    """

    cameras: Collection[int] | None = None
    continents: Collection[str] | None = None
    pids: Collection[int] | None = None
    min_width: int = 0
    min_height: int = 0
    keep_junk: bool = False

    def wanted(self, index: ShardIndex) -> npt.NDArray[np.bool_]:
        """Return (n,) which rows of an index are taken; perhaps none."""
        mask = (index.widths >= self.min_width) & (index.heights >= self.min_height)
        if self.cameras is not None:
            mask &= np.isin(index.camids, sorted(self.cameras))
        if self.pids is not None:
            mask &= np.isin(index.pids, sorted(self.pids))
        if self.continents is not None:
            names = index.continent_names
            mask &= np.isin(index.continents, [names.index(name) for name in self.continents if name in names])
        if not self.keep_junk:
            mask &= index.pids >= 0
        return mask

    def mask(self, index: ShardIndex, name: str) -> npt.NDArray[np.bool_]:
        """Return (n,) which rows of the index of a whole split are taken; at least one is.

        Raises:
            SelectionError: none is, or a camera, continent or person is asked for that is not there.
        """
        for wanted, there, kind in ((self.cameras, index.camids, "camera"), (self.pids, index.pids, "person")):
            if wanted is not None:
                check_known(name, kind, wanted, count_values(there)[0])
        check_known(name, "continent", self.continents, index.continent_names)
        mask = self.wanted(index)
        if not mask.any():
            raise SelectionError(name, f"none of {len(index):,} crops is left by {self}")
        return mask


def check_known(name: str, kind: str, wanted: Collection[Any] | None, there: Iterable[Any]) -> None:
    """Check that all that is wanted is there.

    Raises:
        SelectionError: it is not.
    """
    known = np.unique(np.asarray(there)).tolist()
    if unknown := sorted(set(() if wanted is None else wanted) - set(known)):
        others = f"; there is {', '.join(known)}" if kind == "continent" else " in it"
        raise SelectionError(name, f"no {kind} {_listed(unknown)}{others}")


def _listed(numbers: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, numbers[:_SHOWN]))
    return f"{shown} … ({len(numbers):,} in all)" if len(numbers) > _SHOWN else shown


@dataclass(frozen=True)
class LabelMap:
    """Which class a person is: label i belongs to `pids[i]`. Keep it beside the model.

    Attributes:
        pids: people, sorted.
        numbering: whose numbers they are: the part, `train` or `test`, for each numbers people anew; of a joined data
            set, by the names of its parts, that of each and what was added.

    Example:
        >>> labels = LabelMap((3, 5, 9), "train")
        >>> labels.labels_of(np.array([9, 3, -1]))
        array([ 2,  0, -1])
        >>> LabelMap.from_json(labels.to_json()) == labels
        True
    """

    pids: tuple[int, ...]
    numbering: str

    def __post_init__(self) -> None:
        """Refuse what is no sorted list of people.

        Raises:
            ValueError: it is none.
        """
        if any(after <= before for before, after in zip((-1, *self.pids), self.pids, strict=False)):
            raise ValueError("the pids of a label map are at least 0, sorted, and each is there once")

    @cached_property
    def _known(self) -> npt.NDArray[np.int64]:
        """(n + 1,) int64 the people, and -1 behind the last: every batch is looked up in it."""
        return np.array((*self.pids, JUNK_PID), np.int64)

    def __reduce__(self) -> tuple[object, ...]:
        return LabelMap, (self.pids, self.numbering)

    def __len__(self) -> int:
        return len(self.pids)

    def labels_of(self, pids: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return the labels of (n,) pids, (n,) int64 in [0, len(self)); -1 for junk and distractors.

        Raises:
            SelectionError: a person has none.
        """
        places = np.searchsorted(self._known[:-1], pids)
        found = self._known[places] == pids
        if len(unknown := np.unique(pids[~found & (pids >= 0)])):
            what = f"{_listed(unknown.tolist())} of {self.numbering!r} have no label; they were made from other people"
            raise SelectionError("labels", what)
        return np.where(pids < 0, -1, places)

    def checked(self, name: str, numbering: str, pids: npt.NDArray[np.integer]) -> Self:
        """Return it, if it fits the people of a data set.

        Args:
            name: of the data set, for messages.
            numbering: whose numbers its people have.
            pids: (n,) its people, each at least once.

        Raises:
            SelectionError: they are numbered otherwise, or one of them has no label.
        """
        if self.numbering != numbering:
            what = f"its people are numbered as {numbering!r}, those of the labels as {self.numbering!r}"
            raise SelectionError(name, what)
        self.labels_of(pids)
        return self

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps({"numbering": self.numbering, "pids": self.pids})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote.

        Raises:
            ValueError: it is no such text.
        """
        fields = json.loads(text)
        try:
            pids, numbering = tuple(fields["pids"]), str(fields["numbering"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no label map: {text[:80]!r}") from error
        if not all(type(pid) is int for pid in pids):
            raise ValueError("the pids of a label map are whole numbers")
        return cls(pids, numbering)

    def save(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: it holds no label map.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))
