"""Market-1501: `<pid:04d>_c<cam>s<seq>_<frame>_<box>.jpg`, e.g. `0002_c1s1_000451_03.jpg`.

`-1` is junk (neither a good nor a bad box: scores ignore it) and `0000` a distractor (a false alarm of the detector:
wrong for every query). With the 500k distractors, their folder `images` is part of the gallery.
"""

from __future__ import annotations

import re

from entire_id.records import DISTRACTOR_PID
from entire_id.sources.crops import Layout, NameParts
from entire_id.sources.official import Official

__all__ = ["LAYOUT", "LAYOUT_500K", "parse_distractor", "parse_name"]

_NAME = re.compile(r"(-1|[0-9]{1,300})_c([0-9]{1,300})s([0-9]{1,300})_([0-9]{1,300})_[0-9]{1,300}")
# What follows the camera in the names of the 500k is not documented; that they show nobody is.
_NOBODY = re.compile(r"(-1|0{1,300})_c([0-9]{1,300})(?![0-9]).*", re.DOTALL)
_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_OTHERS = frozenset({"gt_bbox", "gt_query", "readme.txt"})


def parse_name(stem: str) -> NameParts | None:
    """Return the numbers of a file name without its ending, None where it is no name of this family.

    >>> parse_name("0002_c1s1_000451_03"), parse_name("0000_c6s3_086167_01").pid
    (NameParts(pid=2, camid=1, seq=1, frame=451), -2)
    """
    match = _NAME.fullmatch(stem)
    return _distractor(NameParts(*map(int, match.groups()))) if match else None


def parse_distractor(stem: str) -> NameParts | None:
    """Return the same of a name that may be one of the 500k distractors, too.

    >>> parse_distractor("0000_c3_000123")
    NameParts(pid=-2, camid=3, seq=-1, frame=-1)
    """
    match = None if (numbers := parse_name(stem)) else _NOBODY.fullmatch(stem)
    return _distractor(NameParts(int(match[1]), int(match[2]))) if match else numbers


def _distractor(numbers: NameParts) -> NameParts:
    return numbers._replace(pid=DISTRACTOR_PID) if numbers.pid == 0 else numbers


_PEOPLE = (Official(("train",), crops=12_936, people=751), Official(("query",), crops=3_368, people=750))

LAYOUT = Layout(
    name="market1501",
    folders=_FOLDERS,
    parse_name=parse_name,
    example="0002_c1s1_000451_03.jpg",
    others=_OTHERS,
    official=(*_PEOPLE, Official(("gallery",), crops=19_732, people=750, junk=3_819)),
)

LAYOUT_500K = Layout(
    name="market1501-500k",
    folders=_FOLDERS | {"images": "gallery"},
    parse_name=parse_distractor,
    example="0000_c1s1_000151_01.jpg",
    others=_OTHERS,
    marks=("images",),
    official=(*_PEOPLE, Official(("gallery",), people=750)),
)
