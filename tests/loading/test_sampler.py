from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from entire_id import PKSampler
from entire_id.errors import SamplingError

world_sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def crowds(draw):
    """Pids of few people, some with one crop, at times one with a third of all, junk among them; and p and k."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    if draw(st.booleans()):
        sizes.append(sum(sizes) // 2 + 1)
    pids = np.repeat(np.arange(-1, len(sizes)), [draw(st.integers(0, 5)), *sizes])
    order = np.random.default_rng(draw(seeds)).permutation(len(pids))
    return pids[order], draw(st.integers(1, len(sizes))), draw(st.integers(1, 5))


def ranks_of(pids, p, k, world_size, **options):
    """Return the samplers of all ranks."""
    try:
        return [PKSampler(pids, p, k, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    except SamplingError as error:
        if not re.search(r"cannot be shared by \d ranks|drop_last leaves nothing", str(error)):
            raise
        return None


def check_batch(rows, pids, k):
    people = pids[rows].reshape(-1, k)
    assert (people == people[:, :1]).all()
    assert len(set(people[:, 0].tolist())) == len(people) > 0
    assert (people >= 0).all()


def some_pids(num_people=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(num_people), rng.integers(1, 30, num_people)))


# --- an epoch ---------------------------------------------------------------------------------------------------------


@given(crowds(), world_sizes, seeds, st.integers(0, 3))
def test_all_ranks_together_show_every_crop_once_in_equally_many_batches(crowd, world_size, seed, epoch):
    pids, p, k = crowd
    samplers = ranks_of(pids, p, k, world_size, seed=seed)
    assume(samplers)
    whole = PKSampler(pids, p, k, rank=0, world_size=1, seed=seed)
    seen: Counter[int] = Counter()
    for sampler in [whole, *samplers]:
        sampler.set_epoch(epoch)
    given = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in given} == {len(sampler) for sampler in samplers} == {len(samplers[0])}
    for rows in chain.from_iterable(given):
        check_batch(rows, pids, k)
        assert len(rows) <= p * k
        seen.update(rows)
    sizes = Counter(pids[pids >= 0].tolist())
    assert sorted(seen) == np.flatnonzero(pids >= 0).tolist()
    assert seen.total() == sum(-(-size // k) * k for size in sizes.values())
    # The same order at any world size, but for what the ranks share at the end.
    for number, (one, many) in enumerate(zip(whole, chain.from_iterable(zip(*given, strict=True)), strict=False)):
        if number < (len(samplers[0]) - 2) * world_size:
            assert one == many


@given(crowds(), world_sizes, seeds)
def test_with_drop_last_all_batches_are_full_and_as_many_as_can_be(crowd, world_size, seed):
    pids, p, k = crowd
    samplers = ranks_of(pids, p, k, world_size, seed=seed, drop_last=True)
    held = [-(-int(size) // k) for size in np.unique(pids[pids >= 0], return_counts=True)[1]]
    feasible = [m for m in range(sum(held) // p + 1) if sum(min(groups, m) for groups in held) >= m * p]
    if samplers is None:
        assert max(feasible) < world_size
        return
    given = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in given} == {max(feasible) // world_size}
    groups = []
    for rows in chain.from_iterable(given):
        check_batch(rows, pids, k)
        assert len(rows) == p * k
        groups += np.sort(np.reshape(rows, (-1, k)), axis=1).tolist()
    assert len(groups) == sum(len(batches) for batches in given) * p
    firsts = list(chain.from_iterable(zip(*given, strict=True)))
    alone = list(PKSampler(pids, p, k, rank=0, world_size=1, seed=seed, drop_last=True))
    assert firsts == alone[: len(firsts)]


@pytest.mark.parametrize(
    ("num_groups", "world_size", "sizes"),
    [
        (50, 1, [16, 16, 9, 9]),  # not 16, 16, 16, 2
        (60, 1, [16, 16, 16, 12]),
        (50, 2, [16, 16, 9, 9]),
        (50, 3, [9, 9, 8, 8, 8, 8]),
        (50, 4, [13, 13, 12, 12]),
        (44, 4, [11, 11, 11, 11]),
        (64, 4, [16, 16, 16, 16]),
        (256 + 1, 4, [16] * 12 + [9] + [8] * 7),
        (16, 5, [4, 3, 3, 3, 3]),
        (16, 16, [1] * 16),
    ],
)
def test_ranks_share_the_last_step_evenly_and_the_one_before_if_that_is_too_little(num_groups, world_size, sizes):
    given = ranks_of(np.arange(num_groups), 16, 1, world_size)
    assert [len(rows) for step in zip(*given, strict=True) for rows in step] == sizes


@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 9))
def test_no_number_of_ranks_is_refused_that_has_a_group_for_each(num_groups, p, world_size):
    assume(p <= num_groups)
    assert (ranks_of(np.arange(num_groups), p, 1, world_size) is None) == (num_groups < world_size)


def test_epochs_and_seeds_differ_and_repeat():
    pids = some_pids()
    sampler = PKSampler(pids, 4, 4, seed=3)
    first, second = list(sampler), list(sampler)
    assert (sampler.epoch, first != second) == (1, True)
    assert list(PKSampler(pids, 4, 4, seed=3)) == first
    assert list(PKSampler(pids, 4, 4, seed=4)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    sampler.set_epoch(0)
    assert list(sampler) == first
    next(iter(sampler))  # the second epoch begins, and begins again
    assert list(sampler) == second


def test_no_global_generator_is_touched():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(PKSampler(some_pids(), 4, 4))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_cameras_spread_inside_the_crops_of_a_person():
    pids, camids = np.repeat(np.arange(6), 16), np.tile(np.repeat([0, 1, 2, 3], 4), 6)
    for rows in PKSampler(pids, 3, 4, camids=camids):
        np.testing.assert_array_equal(np.sort(camids[rows].reshape(-1, 4), axis=1), [[0, 1, 2, 3]] * (len(rows) // 4))


# --- quotas -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=3),
    st.data(),
    st.integers(1, 5),
    world_sizes,
    seeds,
)
def test_every_batch_holds_the_quotas_and_every_crop_is_seen(classes, data, k, world_size, seed):
    sizes = [size for part in classes for size in part]
    pids = np.repeat(np.arange(len(sizes)), sizes)
    names = np.repeat([f"class {n}" for n, part in enumerate(classes) for _ in part], sizes)
    quotas = {f"class {n}": data.draw(st.integers(1, len(part))) for n, part in enumerate(classes)}
    p = sum(quotas.values())
    options = {"classes": names, "quotas": quotas, "seed": seed}
    samplers = ranks_of(pids, p, k, world_size, **options)
    given = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in given} == {len(samplers[0])}
    seen: Counter[int] = Counter()
    for rows in chain.from_iterable(given):
        check_batch(rows, pids, k)
        assert dict(Counter(names[rows[::k]].tolist())) == quotas
        seen.update(rows)
    assert sorted(seen) == list(range(len(pids)))
    num_groups = sum(-(-size // k) for size in sizes)
    assert samplers[0].num_repeated_groups == seen.total() // k - num_groups
    alone = list(PKSampler(pids, p, k, rank=0, world_size=1, **options))
    both = list(chain.from_iterable(zip(*given, strict=True)))
    assert both == list(islice(alone * world_size, len(both)))


def test_a_class_that_runs_out_begins_anew_and_shows_its_crops_equally_often():
    pids = np.concatenate([np.repeat(np.arange(4), 10), np.repeat(np.arange(4, 30), 40)])
    names = np.where(pids < 4, "few", "many")
    sampler = PKSampler(pids, 4, 2, classes=names, quotas={"few": 1, "many": 3})
    seen = Counter(chain.from_iterable(sampler))
    assert len(sampler) == 174  # 520 groups of many, three a batch
    few = [seen[row] for row in range(40)]
    assert (min(few), max(few)) == (8, 9)
    assert {seen[row] for row in range(40, len(pids))} <= {1, 2}
    assert sampler.num_repeated_groups == 174 * 4 - 20 - 520


@pytest.mark.parametrize(
    ("classes", "quotas", "said"),
    [
        (None, {"a": 2}, "quotas need classes"),
        (["a"] * 6, None, "quotas need classes"),
        (["a"] * 5, {"a": 2}, "classes has shape"),
        (["a"] * 6, {"a": 3}, "whose sum is p 2"),
        (["a"] * 6, {"a": 2, "b": 0}, "at least 1"),
        (["a"] * 4 + ["b"] * 2, {"a": 2}, "class 'b' has no quota"),
        (["a"] * 4 + ["b"] * 2, {"b": 1, "c": 1}, "class 'a' has no quota"),
        (["a"] * 4 + ["b"] * 2, {"b": 2, "a": 0}, "at least 1"),
        (["a"] * 2 + ["b"] * 4, {"a": 1, "b": 1}, None),
        (["a"] * 3 + ["b"] * 3, {"a": 1, "b": 1}, "pid 1 has crops of two classes"),
    ],
)
def test_quotas_that_do_not_fit(classes, quotas, said):
    pids = [0, 0, 1, 1, 2, 2]
    if said is None:
        assert len(PKSampler(pids, 2, 2, classes=classes, quotas=quotas)) == 2
    else:
        with pytest.raises(SamplingError, match=said):
            PKSampler(pids, 2, 2, classes=classes, quotas=quotas)


def test_a_class_with_too_few_identities():
    with pytest.raises(SamplingError, match="class 'a' has 1 identities; a batch cannot hold 2 .* Lower its quota"):
        PKSampler([0, 1, 2], 3, 1, classes=["a", "b", "b"], quotas={"a": 2, "b": 1})


# --- a place in an epoch ----------------------------------------------------------------------------------------------


@given(crowds(), world_sizes, seeds, st.data())
def test_a_resumed_epoch_gives_the_rest_and_the_next_one_is_whole(crowd, world_size, seed, data):
    pids, p, k = crowd
    drop_last = data.draw(st.booleans())
    options = {"seed": seed, "drop_last": drop_last}
    samplers = ranks_of(pids, p, k, world_size, **options)
    assume(samplers)
    sampler, epoch = samplers[-1], data.draw(st.integers(0, 2))
    sampler.set_epoch(epoch)
    num_done = data.draw(st.integers(0, len(sampler)))
    iterator = iter(sampler)
    for _ in range(num_done):
        next(iterator)
    ahead = data.draw(st.booleans())
    if ahead:  # workers asked for more than the loop has used
        next(iterator, None)
        state = sampler.state_dict(num_done)
    else:
        state = sampler.state_dict()
    state = json.loads(json.dumps(state))
    resumed = ranks_of(pids, p, k, world_size, **options)[-1]
    resumed.load_state_dict(state)
    expected = ranks_of(pids, p, k, world_size, **options)[-1]
    expected.set_epoch(epoch)
    whole = list(expected)
    resumed.set_epoch(resumed.epoch)
    assert len(resumed) == len(whole) - num_done
    assert list(resumed) == whole[num_done:]
    assert list(resumed) == list(expected)
    assert len(resumed) == len(whole)


@given(crowds(), world_sizes, world_sizes, seeds, st.data())
def test_another_world_size_goes_on_at_whole_steps_or_says_that_it_cannot(crowd, before, after, seed, data):
    pids, p, k = crowd
    first, then = ranks_of(pids, p, k, before, seed=seed), ranks_of(pids, p, k, after, seed=seed)
    assume(first and then)
    num_done = data.draw(st.integers(0, len(first[0])))
    state = first[0].state_dict(num_done)
    done = list(chain.from_iterable(islice(sampler, num_done) for sampler in first))
    at_end = num_done == len(first[0])
    try:
        for sampler in then:
            sampler.load_state_dict(state)
    except SamplingError as error:
        if "no whole number of steps" not in str(error) or before == after:
            raise
        ends = [len(first[0]) - 2, (len(then[0]) - 2) * after // before]  # of the steps that are not shared
        if num_done * before % after == 0 and num_done <= min(ends):
            raise
        return
    rest = list(chain.from_iterable(then))
    assert at_end == (not rest)
    assert {row for rows in done + rest for row in rows} == set(np.flatnonzero(pids >= 0).tolist())
    sizes = np.unique(pids[pids >= 0], return_counts=True)[1]
    assert sum(map(len, done + rest)) == int((-(-sizes // k) * k).sum())


def test_a_state_is_counted_from_where_the_loop_began():
    sampler = PKSampler(some_pids(), 4, 2)
    whole = list(sampler)
    sampler.load_state_dict(sampler.state_dict() | {"epoch": 0, "num_batches": 5})
    assert list(islice(sampler, 3)) == whole[5:8]
    assert sampler.state_dict()["num_batches"] == 8
    assert sampler.state_dict(2)["num_batches"] == 7
    assert list(sampler) == whole[5:]  # a second iteration begins where the resumed epoch does
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_an_epoch_resumed_at_its_end_is_over_at_once():
    sampler = PKSampler(some_pids(), 4, 2)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    state = sampler.state_dict(len(first))
    sampler.load_state_dict(state)
    assert (len(sampler), list(sampler), list(sampler)) == (0, [], second)
    sampler.load_state_dict(state)
    iter(sampler)  # a loader with workers asks twice where it iterates once
    assert (list(sampler), list(sampler)) == ([], second)


def test_a_state_of_something_else_is_refused():
    pids = some_pids()
    state = PKSampler(pids, 4, 2).state_dict()
    other = np.where(pids == 3, 30, pids)
    for sampler, said in (
        (PKSampler(pids, 4, 3), "state is of k 2, this sampler has k 3"),
        (PKSampler(pids, 5, 2), "p 4"),
        (PKSampler(pids, 4, 2, seed=1), "seed 0"),
        (PKSampler(pids, 4, 2, drop_last=True), "drop_last False"),
        (PKSampler(pids[:-1], 4, 2), "num_rows"),
        (PKSampler(other, 4, 2), "digest"),
        (PKSampler(pids, 4, 2, camids=pids), "digest"),
        (PKSampler(pids, 4, 2, classes=["a"] * len(pids), quotas={"a": 4}), "quotas"),
    ):
        with pytest.raises(SamplingError, match=said):
            sampler.load_state_dict(state)
    with pytest.raises(SamplingError, match="no state of a PKSampler: it has no 'digest'"):
        PKSampler(pids, 4, 2).load_state_dict({key: value for key, value in state.items() if key != "digest"})
    sampler = PKSampler(pids, 4, 2)
    with pytest.raises(SamplingError, match=rf"num_batches -1 is not in 0..{len(sampler)}"):
        sampler.state_dict(-1)


def test_a_number_that_would_become_another_is_refused():
    pids = np.array([1, 1, 2, 2**63 + 5], np.uint64)
    with pytest.raises(SamplingError, match=f"pids {2**63 + 5} is above {2**63 - 1}"):
        PKSampler(pids, 2, 2)
    assert len(PKSampler(pids[:3], 2, 2)) == 1


# --- ranks and loaders ------------------------------------------------------------------------------------------------


def test_ranks_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = PKSampler(some_pids(), 4, 2)
    assert (sampler.rank, sampler.world_size) == (2, 3)
    sampler = PKSampler(some_pids(), 4, 2, rank=0, world_size=1)
    assert (sampler.rank, sampler.world_size) == (0, 1)


def test_a_process_that_does_not_know_its_rank_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SamplingError, match="RANK is not set"):
        PKSampler(some_pids(), 4, 2)


def test_ranks_come_from_torch_distributed_where_it_is_in_use(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sampler = PKSampler(some_pids(), 4, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert (sampler.rank, sampler.world_size) == (0, 1)


class Rows(Dataset):
    def __init__(self, pids):
        self.pids = pids

    def __getitem__(self, row):
        return row, self.pids[row]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_batches_and_goes_on_where_the_loop_was(num_workers):
    pids = some_pids()
    sampler = PKSampler(pids, 4, 2, seed=5)
    loader = DataLoader(Rows(pids), batch_sampler=sampler, num_workers=num_workers)
    given = []
    for num_done, (rows, people) in enumerate(loader, 1):
        np.testing.assert_array_equal(people, pids[rows])
        given.append(rows.tolist())
        if num_done == len(sampler) - 2:
            break
    state = sampler.state_dict(num_done)
    resumed = PKSampler(pids, 4, 2, seed=5)
    resumed.load_state_dict(state)
    loader = DataLoader(Rows(pids), batch_sampler=resumed, num_workers=num_workers)
    assert len(loader) == 2
    given += [rows.tolist() for rows, _ in loader]
    fresh = PKSampler(pids, 4, 2, seed=5)
    assert given == list(fresh)
    assert [rows.tolist() for rows, _ in loader] == list(fresh)


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"p": 0}, "p 0 is not at least 1"),
        ({"k": 0}, "k 0 is not at least 1"),
        ({"seed": -1}, "seed -1 is not at least 0"),
        ({"p": 4}, "3 identities .* cannot fill a batch of p 4. Take another split or selection, or p 3 or less"),
        ({"camids": [0]}, "camids has 1 rows, pids has 6"),
        ({"seqs": [0.5] * 6}, "seqs of type float64"),
        ({"pids": []}, "0 identities .* Take another split or selection"),
        ({"pids": [-1, -1]}, "0 identities .* Take another split or selection"),
        ({"pids": [[1, 2]]}, "no list of integers"),
        ({"rank": 1}, "give both or neither"),
        ({"rank": 3, "world_size": 3}, "rank 3 is not in 0..2"),
        ({"world_size": 8, "rank": 0}, "3 groups in 2 batches cannot be shared by 8 ranks"),
        ({"world_size": 2, "rank": 0, "drop_last": True}, "drop_last leaves nothing"),
    ],
)
def test_what_cannot_be_drawn(options, said):
    with pytest.raises(SamplingError, match=said):
        PKSampler(**({"pids": [0, 0, 1, 1, 2, 2], "p": 2, "k": 2} | options))


def test_an_epoch_below_0():
    with pytest.raises(SamplingError, match="epoch -1 is not at least 0"):
        PKSampler([0, 1], 1, 1).set_epoch(-1)
