"""DukeMTMC-reID: `<pid:04d>_c<cam>_f<frame>.jpg`, e.g. `0005_c2_f0046985.jpg`; Occluded-Duke: the same crops by lists.

Gallery identities without a query (408 of them) keep their numbers: they are people. The lists of Occluded-Duke,
`train.list`, `query.list` and `gallery.list`, hold a file name a line. As in their authors' script, a crop that is not
in its folder is taken from Duke's gallery: so are 1,870 of the 2,210 queries, and these stay in the gallery, too.
"""

from __future__ import annotations

import re

from entire_id.sources.crops import Layout, NameParts
from entire_id.sources.lists import Lists
from entire_id.sources.official import Official

__all__ = ["LAYOUT", "OCCLUDED", "parse_name"]

_NAME = re.compile(r"([0-9]{1,300})_c([0-9]{1,300})_f([0-9]{1,300})")
_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_OTHERS = frozenset({"README.md", "CITATION.txt", "LICENSE_DukeMTMC-reID.txt", "LICENSE_DukeMTMC.txt"})


def parse_name(stem: str) -> NameParts | None:
    """Return the numbers of a file name without its ending, None where it is no name of this family.

    >>> parse_name("0005_c2_f0046985")
    NameParts(pid=5, camid=2, seq=-1, frame=46985)
    """
    match = _NAME.fullmatch(stem)
    return NameParts(int(match[1]), int(match[2]), frame=int(match[3])) if match else None


def _parse_line(line: str) -> tuple[str, int | None]:
    return line, None


LAYOUT = Layout(
    name="dukemtmc-reid",
    folders=_FOLDERS,
    parse_name=parse_name,
    example="0005_c2_f0046985.jpg",
    others=_OTHERS,
    official=(
        Official(("train",), crops=16_522, people=702),
        Official(("query",), crops=2_228, people=702),
        Official(("gallery",), crops=17_661, people=1_110),
    ),
)

OCCLUDED = Layout(
    name="occluded-duke",
    folders=_FOLDERS,
    parse_name=parse_name,
    example="0005_c2_f0046985.jpg",
    others=_OTHERS,
    word="occluded",
    lists=Lists(
        files={"train.list": "train", "query.list": "query", "gallery.list": "gallery"},
        folders={
            "train": ("bounding_box_train", "bounding_box_test"),
            "query": ("query", "bounding_box_test"),
            "gallery": ("bounding_box_test",),
        },
        parse_line=_parse_line,
        are_needed=False,  # once they were applied, the folders alone say it
    ),
    official=(
        Official(("train",), crops=15_618, people=702),
        Official(("query",), crops=2_210, people=519),
        Official(("gallery",), crops=17_661, people=1_110),
    ),
)
