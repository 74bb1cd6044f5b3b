"""The plan of a stream's epoch, by number alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from entire_id.errors import SamplingError
from entire_id.loading.groups import group_pids
from entire_id.loading.lanes import EpochDraw, Lane, Unit, UnitLabels, deal_units, draw_units

SHARDS = st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=8)


def draw_of(
    p: int = 4, k: int = 2, pool_rows: int = 40, unit_groups: int = 2, seed: int = 0, epoch: int = 0
) -> EpochDraw:
    return EpochDraw(p, k, pool_rows, unit_groups, seed, epoch)


@given(SHARDS, st.integers(1, 5), st.integers(0, 3))
def test_every_row_group_is_in_one_unit_of_its_shard(shards: list[list[int]], unit_groups: int, seed: int) -> None:
    units = draw_units(shards, draw_of(unit_groups=unit_groups, seed=seed))
    found = Counter((unit.shard, group) for unit in units for group in unit.row_groups)
    assert found == Counter((shard, group) for shard, sizes in enumerate(shards) for group in range(len(sizes)))
    for unit in units:
        assert 1 <= len(unit.row_groups) <= unit_groups
        assert unit.num_rows == sum(shards[unit.shard][group] for group in unit.row_groups)
    assert units == draw_units(shards, draw_of(unit_groups=unit_groups, seed=seed))


def test_epochs_and_seeds_differ() -> None:
    shards = [[10] * 20] * 5
    plans = [draw_units(shards, draw_of(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for place, one in enumerate(plans) for other in plans[:place])


@given(SHARDS, st.integers(1, 5))
def test_lanes_share_all_units_and_differ_by_one_at_most(shards: list[list[int]], num_lanes: int) -> None:
    units = draw_units(shards, draw_of())
    lanes = deal_units(units, num_lanes)
    assert Counter(unit for lane in lanes for unit in lane) == Counter(units)
    rows = [sum(unit.num_rows for unit in lane) for lane in lanes]
    assert max(rows) - min(rows) <= max((unit.num_rows for unit in units), default=0)


def lanes_of(pids: list[list[int]], num_lanes: int, draw: EpochDraw) -> list[Lane]:
    """Lanes over shards of 7-row groups, whose rows have the given pids."""
    row_groups = [[len(shard[start : start + 7]) for start in range(0, len(shard), 7)] for shard in pids]
    dealt = deal_units(draw_units(row_groups, draw), num_lanes)

    def labels(units: list[Unit]) -> Callable[[int], UnitLabels]:
        def of(number: int) -> UnitLabels:
            unit = units[number]
            column = np.array([pid for group in unit.row_groups for pid in pids[unit.shard][7 * group : 7 * group + 7]])
            return UnitLabels(column, (column % 3).astype(np.int32), (column % 2).astype(np.int32))

        return of

    return [Lane(number, units, labels(units), draw) for number, units in enumerate(dealt)]


@given(
    st.lists(st.lists(st.integers(-1, 9), min_size=1, max_size=60), min_size=3, max_size=6),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 3), (4, 4)]),
    st.integers(0, 2),
)
def test_all_lanes_together_show_every_crop_once_and_end_together(
    pids: list[list[int]], num_lanes: int, shape: tuple[int, int], seed: int
) -> None:
    draw = draw_of(p=shape[0], k=shape[1], seed=seed)
    lanes = lanes_of(pids, num_lanes, draw)
    longest = max(lane.count() for lane in lanes)
    assume(all(num_groups(lane, draw.k) >= longest for lane in lanes))
    seen: Counter[tuple[int, int, int]] = Counter()
    for lane in lanes:
        batches = 0
        for drawn in lane.batches(lambda: longest):
            assert drawn.number == batches
            batches += 1
            shown = [lane.waiting[unit][0].pids[group] for unit, group in zip(drawn.units, drawn.groups, strict=True)]
            assert len(set(shown)) == len(shown) <= draw.p
            for unit, group in zip(drawn.units.tolist(), drawn.groups.tolist(), strict=True):
                cut = lane.waiting[unit][0]
                stop = draw.k - int(cut.num_padded[group])
                seen.update((id(lane), unit, row) for row in cut.rows[group, :stop].tolist())
        assert batches == longest
        assert not lane.waiting
    assert set(seen.values()) <= {1}
    assert len(seen) == sum(pid >= 0 for shard in pids for pid in shard)


@given(st.integers(2, 4), st.integers(0, 20), st.integers(0, 2))
def test_a_lane_with_fewer_groups_than_another_has_batches_is_refused(num_lanes: int, few: int, seed: int) -> None:
    draw = draw_of(p=1, k=1, unit_groups=1, seed=seed)
    pids = [[*range(few), *[-1] * (21 - few)], *[list(range(21))] * (num_lanes - 1)]
    lanes = lanes_of(pids, num_lanes, draw)
    longest = max(lane.count() for lane in lanes)
    for lane in lanes:
        if num_groups(lane, draw.k) == longest:
            assert len(list(lane.batches(lambda: longest))) == longest
        else:
            with pytest.raises(SamplingError, match="which another lane still makes.* Use fewer lanes or workers"):
                list(lane.batches(lambda: longest))


def num_groups(lane: Lane, k: int) -> int:
    return sum(len(group_pids(lane._labels(unit).pids, k)) for unit in range(len(lane.units)))
