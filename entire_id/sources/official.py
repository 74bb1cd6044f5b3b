"""How many crops and people a published data set holds, and how many were found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

__all__ = ["Count", "Found", "Official", "compare_counts"]


@dataclass(frozen=True, slots=True)
class Official:
    """What the authors say of some splits together; None where nobody says.

    Attributes:
        splits: which.
        crops: files, junk and distractors included.
        people: identities.
        junk: crops of pid -1.
    """

    splits: tuple[str, ...]
    crops: int | None = None
    people: int | None = None
    junk: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was packed of one split."""

    crops: int = 0
    pids: AbstractSet[int] = frozenset()
    junk: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """One number that the authors give, and what was found.

    Attributes:
        splits: of which splits.
        what: `crops`, `identities` or `junk`.
        expected: by the authors' count.
        found: here.
    """

    splits: tuple[str, ...]
    what: str
    expected: int
    found: int

    @property
    def is_official(self) -> bool:
        """Whether it is the authors' number."""
        return self.expected == self.found


def compare_counts(official: Iterable[Official], found: Mapping[str, Found]) -> tuple[Count, ...]:
    """Return every official number beside that of the same splits here, in the order of `official`.

    >>> [count] = compare_counts([Official(("train", "val"), crops=3)], {"train": Found(crops=2)})
    >>> count.found, count.is_official
    (2, False)
    """
    counts = []
    for one in official:
        here = [found.get(split, Found()) for split in one.splits]
        numbers = {
            "crops": (one.crops, sum(part.crops for part in here)),
            "identities": (one.people, len(frozenset().union(*(part.pids for part in here)))),
            "junk": (one.junk, sum(part.junk for part in here)),
        }
        counts += [
            Count(one.splits, what, expected, number)
            for what, (expected, number) in numbers.items()
            if expected is not None
        ]
    return tuple(counts)
