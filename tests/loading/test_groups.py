from __future__ import annotations

from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.errors import SamplingError
from entire_id.loading.groups import Batches, Pool, arrange, cut_groups, draw_batches, group_pids

seeds = st.integers(0, 2**32 - 1)
ks = st.integers(1, 6)
ps = st.integers(1, 9)
row_pids = st.lists(st.integers(-2, 12), max_size=80).map(lambda pids: np.array(pids, np.int32))
held = st.lists(st.integers(1, 40), max_size=25)  # groups of each identity
units = st.lists(row_pids, max_size=30)


def shuffled_pids(counts: list[int], rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def check_batches(batches: Batches, pids: np.ndarray, p: int) -> list[int]:
    """Return the sizes of batches that hold every group once and nobody twice."""
    assert sorted(batches.groups.tolist()) == list(range(len(pids)))
    for number in range(len(batches)):
        people = pids[batches[number]].tolist()
        assert 0 < len(people) == len(set(people)) <= p
    return np.diff(batches.offsets).tolist()


# --- groups of K ------------------------------------------------------------------------------------------------------


@given(row_pids, ks, seeds, st.booleans(), st.booleans())
def test_every_row_of_a_person_is_in_one_group_and_padding_is_the_least(pids, k, seed, with_camids, with_seqs):
    columns = np.random.default_rng(seed).integers(-1, 4, (2, len(pids)))
    camids, seqs = (columns[0] if with_camids else None), (columns[1] if with_seqs else None)
    groups = cut_groups(pids, k, np.random.default_rng(seed), camids, seqs)
    real = [rows[: k - num] for rows, num in zip(groups.rows.tolist(), groups.num_padded.tolist(), strict=True)]
    assert sorted(chain.from_iterable(real)) == np.flatnonzero(pids >= 0).tolist()
    assert (pids[groups.rows] == groups.pids[:, None]).all()
    sizes = Counter(pids[pids >= 0].tolist())
    assert Counter(groups.pids.tolist()) == {pid: -(-size // k) for pid, size in sizes.items()}
    assert groups.num_padded.sum() == sum(-size % k for size in sizes.values())
    for pid, rows in zip(groups.pids.tolist(), groups.rows.tolist(), strict=True):
        assert len(set(rows)) == min(k, sizes[pid])  # repeats only where there is nothing else
    np.testing.assert_array_equal(groups.pids, group_pids(pids, k))


def test_groups_spread_over_cameras_then_sequences():
    camids = np.repeat([0, 1, 2, 3], 6)
    seqs = np.tile([0, 1, 2], 8)
    groups = cut_groups(np.zeros(24, int), 4, np.random.default_rng(0), camids, seqs)
    np.testing.assert_array_equal(np.sort(camids[groups.rows], axis=1), np.tile([0, 1, 2, 3], (6, 1)))
    pairs = cut_groups(np.zeros(24, int), 2, np.random.default_rng(0), None, np.repeat([0, 1], 12))
    np.testing.assert_array_equal(np.sort(pairs.rows // 12, axis=1), np.tile([0, 1], (12, 1)))


@pytest.mark.parametrize("factor", [1_000, 10**7, 2**58])
def test_only_the_order_of_numbers_counts_however_far_apart(factor):
    rng = np.random.default_rng(0)
    columns = rng.integers(-1, 12, (3, 200))
    near, far = (
        cut_groups(pids, 3, np.random.default_rng(1), camids, seqs)
        for pids, camids, seqs in (columns, np.where(columns < 0, columns, columns * factor))
    )
    np.testing.assert_array_equal(near.rows, far.rows)
    near, far = (arrange(groups.pids, 4, np.random.default_rng(2)) for groups in (near, far))
    np.testing.assert_array_equal(near.groups, far.groups)


def test_which_rows_are_left_over_and_pad_is_chance():
    chosen = Counter()
    for seed in range(300):
        groups = cut_groups(np.zeros(6, int), 4, np.random.default_rng(seed), np.arange(6))
        assert groups.num_padded.tolist() == [0, 2]
        chosen.update(groups.rows[1].tolist())
    assert min(chosen.values()) > 150  # 200 expected of each row


def test_cameras_do_not_change_which_rows_are_left_over():
    plain, spread = (
        cut_groups(np.zeros(11, int), 4, np.random.default_rng(3), camids) for camids in (None, np.arange(11) % 3)
    )
    np.testing.assert_array_equal(plain.rows[2], spread.rows[2])


def test_identities_far_apart_and_large():
    pids = np.array([2**62, 0, 5, 2**62, 2**63 - 1] * 3)
    camids = np.tile(np.array([-(2**63), 2**63 - 1, 0]), 5)
    groups = cut_groups(pids, 2, np.random.default_rng(0), camids, camids)
    np.testing.assert_array_equal(groups.pids, group_pids(pids, 2))
    assert (pids[groups.rows] == groups.pids[:, None]).all()
    assert len(np.unique(groups.rows)) == 15


def test_what_cannot_be_cut():
    rng = np.random.default_rng(0)
    with pytest.raises(SamplingError, match="k 0 is not at least 1"):
        cut_groups(np.zeros(3, int), 0, rng)
    with pytest.raises(SamplingError, match=r"seqs has shape \(2,\), pids has \(3,\)"):
        cut_groups(np.zeros(3, int), 2, rng, np.zeros(3, int), np.zeros(2, int))


# --- batches of P -----------------------------------------------------------------------------------------------------


@given(held, ps, seeds)
def test_arranged_batches_are_full_but_the_last_wherever_that_can_be(counts, p, seed):
    rng = np.random.default_rng(seed)
    pids = shuffled_pids(counts, rng)
    sizes = check_batches(arrange(pids, p, rng), pids, p)
    least, most = -(-len(pids) // p), max(counts, default=0)
    assert len(sizes) == max(least, most)
    num_full, num_left = divmod(len(pids), p)
    if most <= num_full or (most == least and sum(count == most for count in counts) <= num_left):
        assert sizes == [p] * num_full + [num_left] * (num_left > 0)
    else:
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


@given(held, ps, seeds, st.integers(1, 30))
def test_more_batches_are_of_even_size(counts, p, seed, more):
    rng = np.random.default_rng(seed)
    pids = shuffled_pids(counts, rng)
    wanted = len(arrange(pids, p, rng)) + more
    if wanted > len(pids):
        with pytest.raises(SamplingError, match=f"{len(pids)} groups cannot make {wanted} batches"):
            arrange(pids, p, rng, wanted)
        return
    sizes = check_batches(arrange(pids, p, rng, wanted), pids, p)
    assert len(sizes) == wanted
    assert sizes[0] - sizes[-1] <= 1


def test_arranging_is_uniform():
    """Two of three people with two groups each meet: each pair as often as the others, in each batch."""
    pids, met, last = np.array([0, 0, 1, 1, 2, 2]), Counter(), Counter()
    for seed in range(900):
        batches = arrange(pids, 4, np.random.default_rng(seed))
        assert np.diff(batches.offsets).tolist() == [3, 3]
        batches = arrange(pids, 2, np.random.default_rng(seed))
        met.update(tuple(sorted(pids[batches[number]])) for number in range(3))
        batches = arrange(np.array([0, 0, 0, 1, 2, 3, 3]), 3, np.random.default_rng(seed))
        last.update(batches[2].tolist())
    assert {pair: 800 < count < 1000 for pair, count in met.items()} == {(0, 1): True, (0, 2): True, (1, 2): True}
    assert set(last) == {0, 1, 2}  # the one with three groups is in all batches
    assert min(last.values()) > 240


def test_people_who_were_dealt_in_the_same_round_meet_too():
    pids, met = np.repeat(np.arange(8), 10), 0
    for seed in range(50):
        batches = arrange(pids, 4, np.random.default_rng(seed))
        met += len({pair for number in range(20) for pair in combinations(sorted(pids[batches[number]]), 2)})
    assert met / 50 > 26  # of 28; two people fill a round, and the four pairs of a round were apart


# --- a pool -----------------------------------------------------------------------------------------------------------


@given(held, ps, seeds, st.integers(0, 20))
def test_a_release_is_of_full_batches_and_leaves_what_can_be_drained(counts, p, seed, num_batches):
    rng = np.random.default_rng(seed)
    pids = shuffled_pids(counts, rng)
    pool = Pool(p, rng)
    assert pool.add(pids) == range(len(pids))
    released = pool.release(num_batches)
    feasible = [m for m in range(num_batches + 1) if sum(min(count, m) for count in counts) >= m * p]
    assert np.diff(released.offsets).tolist() == [p] * max(feasible)
    before, need = max(counts, default=0), -(-len(pids) // p)
    left = Counter(pids.tolist()) - Counter(pids[released.groups].tolist())
    assert len(pool) == left.total()
    assert max(left.values(), default=0) <= max(before, need) - len(released)
    drained = pool.drain()
    assert len(drained) == max(need, before) - len(released)
    check_batches(
        Batches(
            np.concatenate([released.groups, drained.groups]),
            np.concatenate([released.offsets, drained.offsets[1:] + len(released.groups)]),
        ),
        pids,
        p,
    )


def test_a_release_draws_each_group_as_likely_as_any_other():
    drawn = Counter()
    for seed in range(400):
        pool = Pool(2, np.random.default_rng(seed))
        pool.add(np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]))
        drawn.update(pool.release(1).groups.tolist())
    assert set(drawn) == set(range(12))
    assert max(drawn.values()) < 2 * min(drawn.values())


@given(units, ks, ps, st.integers(0, 30), seeds)
def test_a_stream_gives_every_group_once_in_full_batches_while_units_remain(units, k, p, pool_groups, seed):
    unit_pids = [group_pids(pids, k) for pids in units]
    pids = np.concatenate([np.empty(0, np.int64), *unit_pids])
    taken: list[int] = [0]

    def arriving():
        for groups in unit_pids:
            taken.append(taken[-1] + len(groups))
            yield groups

    parts, num_drawn = [], 0
    for batches in draw_batches(arriving(), p, pool_groups, np.random.default_rng(seed)):
        parts.append(batches)
        assert batches.groups.max(initial=-1) < taken[-1]
        waiting = np.setdiff1d(np.arange(taken[-1]), np.concatenate([part.groups for part in parts]))
        num_drawn += len(batches.groups)
        assert len(waiting) == taken[-1] - num_drawn
        assert len(waiting) < max(pool_groups, 1) or len(set(pids[waiting].tolist())) < p
    assert taken[-1] == len(pids)
    groups = np.concatenate([part.groups for part in parts])
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    check_batches(Batches(groups, np.concatenate([[0], np.cumsum(sizes)])), pids, p)
    assert all((np.diff(part.offsets) == p).all() for part in parts[:-1])

    num_batches = sum(len(part) for part in parts)
    again = list(draw_batches(unit_pids, p, pool_groups, np.random.default_rng(seed), lambda: num_batches))
    assert [part.groups.tolist() for part in again] == [part.groups.tolist() for part in parts]


def test_streams_end_together_where_that_is_asked_for():
    units = [np.arange(20)] * 5
    parts = list(draw_batches(units, 4, 30, np.random.default_rng(0), lambda: 28))
    assert sum(len(part) for part in parts) == 28
    assert np.ptp(np.diff(parts[-1].offsets)) == 1
    with pytest.raises(SamplingError, match="make 25 batches at least, 24 were asked for"):
        list(draw_batches(units, 4, 30, np.random.default_rng(0), lambda: 24))
    with pytest.raises(SamplingError, match="groups are left for .* batches.*Use fewer lanes or workers"):
        list(draw_batches(units, 4, 30, np.random.default_rng(0), lambda: 80))


def test_an_identity_with_a_third_of_all_groups_has_its_turn_in_time():
    units = [np.repeat(np.arange(21), [1] * 20 + [10])] * 12
    parts = list(draw_batches(units, 3, 60, np.random.default_rng(1)))
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    assert sizes.tolist() == [3] * 120
