"""CUHK03-NP, the 767/700 protocol: `0003_c1_22.png`, or `1_001_1_01.png` as from the authors' .mat file.

The first is pid, view, index. The second is pair of cameras, person of that pair, view, index; persons are numbered
anew for each pair, so that pair and person together are the pid, `10000 · pair + person`, and pair and view the camera,
`10 · pair + view`. Six cameras are said to have made the five pairs; which is which is not, and no score asks.

Detected and labeled boxes are two sets, in folders of these names. The classic split is another protocol: describe it
in a table, and score it with `single_gallery_shot`.
"""

from __future__ import annotations

import re

from entire_id.sources.crops import Layout, NameParts
from entire_id.sources.official import Official

__all__ = ["DETECTED", "LABELED", "parse_name"]

_NAME = re.compile(r"([0-9]{1,300})_c([0-9]{1,300})_[0-9]{1,300}")
_PAIR_NAME = re.compile(r"([1-9])_([0-9]{1,4})_([0-9])_[0-9]{1,300}")


def parse_name(stem: str) -> NameParts | None:
    """Return identity and camera of a file name without its ending, None where it is no name of this family.

    >>> parse_name("0003_c1_22"), parse_name("2_001_1_01")
    (NameParts(pid=3, camid=1, seq=-1, frame=-1), NameParts(pid=20001, camid=21, seq=-1, frame=-1))
    """
    if match := _NAME.fullmatch(stem):
        return NameParts(int(match[1]), int(match[2]))
    if match := _PAIR_NAME.fullmatch(stem):
        pair, person, view = map(int, match.groups())
        return NameParts(10_000 * pair + person, 10 * pair + view)
    return None


def _layout(boxes: str, num_train: int, num_gallery: int) -> Layout:
    return Layout(
        name=f"cuhk03-np-{boxes}",
        folders={"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"},
        parse_name=parse_name,
        example="0003_c1_22.png",
        variants=(boxes, "labeled" if boxes == "detected" else "detected"),
        official=(
            Official(("train",), crops=num_train, people=767),
            Official(("query",), crops=1_400, people=700),
            Official(("gallery",), crops=num_gallery, people=700),
        ),
    )


DETECTED = _layout("detected", 7_365, 5_332)
LABELED = _layout("labeled", 7_368, 5_328)
