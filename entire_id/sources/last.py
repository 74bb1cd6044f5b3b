"""LaST: film stills, `train/<pid>/<pid>_….jpg`, and `query` and `gallery` in `test` and `val`. There are no cameras.

Every reader gives each image a camera of its own, so that no right crop is ignored for standing under the query's.
Here queries stand under camera 0, galleries under 1 and train under 2, which scores alike (`no_camera` does, too)
without a camera for every crop. The people of val are others than those of train (the totals of the authors say so),
and nobody says that their numbers are: 1,000,000 is added to them.
"""

from __future__ import annotations

import re

from entire_id.sources.crops import Layout, NameParts
from entire_id.sources.official import Official

__all__ = ["LAYOUT", "number", "parse_name"]

_NAME = re.compile(r"([0-9]{1,300})(?:_.*)?", re.DOTALL)
_CAMIDS = {"train": 2, "val/query": 0, "val/gallery": 1, "test/query": 0, "test/gallery": 1}
_VAL_OFFSET = 1_000_000


def parse_name(stem: str) -> NameParts | None:
    """Return the identity of a file name without its ending, None where it is no name of this family.

    >>> parse_name("000012_film_00345").pid
    12
    """
    match = _NAME.fullmatch(stem)
    return NameParts(int(match[1]), 0) if match else None


def number(folder: str, parts: NameParts) -> NameParts:
    """Return the numbers of a crop of the given folder.

    >>> number("val/gallery", NameParts(12, 0))
    NameParts(pid=1000012, camid=1, seq=-1, frame=-1)
    """
    offset = _VAL_OFFSET if folder.startswith("val/") else 0
    return NameParts(parts.pid + offset, _CAMIDS[folder])


LAYOUT = Layout(
    name="last",
    folders={
        "train": "train",
        "val/query": "val",
        "val/gallery": "val",
        "test/query": "query",
        "test/gallery": "gallery",
    },
    parse_name=parse_name,
    example="000012_film_00345.jpg",
    number=number,
    marks=("test/query", "test/gallery"),
    official=(
        Official(("train",), crops=71_248, people=5_000),
        Official(("val",), crops=21_379, people=56),
        Official(("query",), crops=10_176),
        Official(("gallery",), crops=125_353),
        Official(("query", "gallery"), people=5_806),
    ),
)
