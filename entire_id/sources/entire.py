"""ENTIRe-ID's own names: `<pid:05d>_c<cam:03d>s<seq>_<frame>.jpg`, e.g. `00009_c021s0_760487.jpg`."""

from __future__ import annotations

import re

from entire_id.sources.crops import Layout, NameParts

__all__ = ["LAYOUT", "parse_name"]

# The usual `([-\d]+)_c(\d)` reads camera 021 as 0: the whole name must match, and the whole number is the camera.
_NAME = re.compile(r"(-1|[0-9]{1,300})_c([0-9]{1,300})s([0-9]{1,300})_([0-9]{1,300})")


def parse_name(stem: str) -> NameParts | None:
    """Return the numbers of a file name without its ending, None where it is no name of this family.

    >>> parse_name("00009_c021s0_760487")
    NameParts(pid=9, camid=21, seq=0, frame=760487)
    """
    match = _NAME.fullmatch(stem)
    return NameParts(*map(int, match.groups())) if match else None


LAYOUT = Layout(
    name="entire-id",
    folders={"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"},
    parse_name=parse_name,
    example="00009_c021s0_760487.jpg",
)
