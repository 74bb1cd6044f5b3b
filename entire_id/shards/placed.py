"""Where a packed data set has its people, and the crops of nobody's: junk, and distractors without a label."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from entire_id.shards.manifest import Manifest, Shard
from entire_id.shards.plan import Placement, keyed_hash

__all__ = ["keys_of_nobody", "placements", "shard_number"]


def placements(manifest: Manifest, nobody_of: Callable[[Shard], list[str]]) -> dict[tuple[str, str], Placement]:
    """Return (split, continent) → where the data set has whom, as `plan_shards` wants it.

    Args:
        manifest: it says where people are.
        nobody_of: gives the keys of a shard's crops of nobody's.
    """
    groups: dict[tuple[str, str], list[Shard]] = {}
    for shard in manifest.shards:
        groups.setdefault((shard.split, shard.continent), []).append(shard)

    def placement(shards: list[Shard]) -> Placement:
        numbers = [shard_number(shard) for shard in shards]
        pairs = list(zip(shards, numbers, strict=True))
        return Placement(
            {pid: number for shard, number in pairs for pid in shard.pids},
            {keyed_hash(key, manifest.seed): number for shard, number in pairs for key in nobody_of(shard)},
            max(numbers) + 1,
        )

    return {group: placement(shards) for group, shards in groups.items()}


def keys_of_nobody(rows: pa.Table) -> list[str]:
    """Return the keys of the rows that show nobody."""
    keys: list[str] = rows.filter(rows["pid"].to_numpy() < 0)["key"].to_pylist()
    return keys


def shard_number(shard: Shard) -> int:
    """Return a shard's place among those of its split and continent."""
    return int(shard.path.rpartition("-")[2].partition(".")[0])
