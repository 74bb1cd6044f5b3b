"""MSMT17: crops named in lists, `0000/0000_000_01_0303morning_0015_0.jpg 0`: a path and its identity a line.

Version 1 has them in `train` and `test`, version 2, whose faces are blurred, in `mask_train_v2` and `mask_test_v2`:
that is all that tells them apart. The third number of a name is the camera. What the others are is not documented, so
`seq` and `frame` are left out. Both parts count identities from 0; train and val share theirs.
"""

from __future__ import annotations

import re

from entire_id.sources.crops import Layout, NameParts
from entire_id.sources.lists import Lists
from entire_id.sources.official import Official

__all__ = ["V1", "V2", "parse_name"]

_NAME = re.compile(r"([0-9]{1,300})_[0-9]{1,300}_([0-9]{1,300})_.*", re.DOTALL)
_TEST_PEOPLE = 4_101 - 1_041  # inferred: nobody counts them among the queries, and in the gallery
_SPLITS = {"train": 0, "val": 0, "query": 1, "gallery": 1}


def parse_name(stem: str) -> NameParts | None:
    """Return identity and camera of a file name without its ending, None where it is no name of this family.

    >>> parse_name("0000_000_01_0303morning_0015_0")
    NameParts(pid=0, camid=1, seq=-1, frame=-1)
    """
    match = _NAME.fullmatch(stem)
    return NameParts(int(match[1]), int(match[2])) if match else None


def _parse_line(line: str) -> tuple[str, int | None]:
    """Return path and identity.

    Raises:
        ValueError: it is no such line.
    """
    path, pid = line.rsplit(maxsplit=1)
    return path, int(pid)


def _layout(name: str, train: str, test: str) -> Layout:
    parts = (train, test)
    return Layout(
        name=name,
        folders={train: "train", test: "gallery"},
        parse_name=parse_name,
        example="0000_000_01_0303morning_0015_0.jpg",
        lists=Lists(
            files={f"list_{split}.txt": split for split in _SPLITS},
            folders={split: (parts[part],) for split, part in _SPLITS.items()},
            parse_line=_parse_line,
        ),
        official=(
            Official(("train", "val"), crops=32_621, people=1_041),
            Official(("query",), crops=11_659, people=_TEST_PEOPLE),
            Official(("gallery",), crops=82_161, people=_TEST_PEOPLE),
        ),
    )


V1 = _layout("msmt17-v1", "train", "test")
V2 = _layout("msmt17-v2", "mask_train_v2", "mask_test_v2")
