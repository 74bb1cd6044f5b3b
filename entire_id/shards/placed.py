"""Where a packed data set has its people, and its junk."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from entire_id.records import JUNK_PID
from entire_id.shards.manifest import Manifest, Shard
from entire_id.shards.plan import Placement, keyed_hash

__all__ = ["junk_keys", "placements", "shard_number"]


def placements(manifest: Manifest, junk_of: Callable[[Shard], list[str]]) -> dict[tuple[str, str], Placement]:
    """Return (split, continent) → where the data set has whom, as `plan_shards` wants it.

    Args:
        manifest: it says where people are.
        junk_of: gives the keys of a shard's junk crops.
    """
    found: dict[tuple[str, str], Placement] = {}
    for shard in manifest.shards:
        number = shard_number(shard)
        place = found.setdefault((shard.split, shard.continent), Placement({}, {}, 0))
        found[shard.split, shard.continent] = Placement(
            {**place.shard_of_pid, **dict.fromkeys(shard.pids, number)},
            {**place.shard_of_junk, **{keyed_hash(key, manifest.seed): number for key in junk_of(shard)}},
            max(place.next_number, number + 1),
        )
    return found


def junk_keys(rows: pa.Table) -> list[str]:
    """Return the keys of the rows that show nobody."""
    keys: list[str] = rows.filter(rows["pid"].to_numpy() == JUNK_PID)["key"].to_pylist()
    return keys


def shard_number(shard: Shard) -> int:
    """Return a shard's place among those of its split and continent."""
    return int(shard.path.rpartition("-")[2].partition(".")[0])
