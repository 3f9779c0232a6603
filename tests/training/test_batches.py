"""Which items a training step gets, on any number of processes and from any step on."""

import os
import warnings

import pytest
import torch
from torch.utils.data import Dataset

from codeclade.training.batches import StepSampler, reading_processes, step_loader


class Squares(Dataset):
    """An item is the square of its index and its seed."""

    def __getitem__(self, key):
        return torch.tensor(key[0] ** 2), torch.tensor(key[1])


def test_every_item_is_seen_once_an_epoch_across_batch_borders():
    sampler = StepSampler(size=10, batch_size=4, seed=1, start=0, end=15)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 15
    assert all(len(batch) == 4 for batch in batches)
    order = [index for batch in batches for index, _ in batch]
    epochs = [order[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_batch_may_span_several_epochs():
    (batch,) = StepSampler(size=3, batch_size=9, seed=0, start=0, end=1)
    assert sorted(index for index, _ in batch) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_view_seeds_never_repeat_and_order_depends_on_the_seed():
    runs = [list(StepSampler(10, 4, seed, 0, 30)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    seeds = [seed for batch in runs[0] + runs[2] for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("start", [1, 2, 5, 13, 20])
def test_starting_at_a_step_gives_the_batches_from_there(start):
    whole = list(StepSampler(size=10, batch_size=4, seed=3, start=0, end=20))
    assert list(StepSampler(size=10, batch_size=4, seed=3, start=start, end=20)) == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_every_global_batch(world_size):
    whole = StepSampler(size=10, batch_size=12, seed=3, start=2, end=9)
    ranks = [StepSampler(10, 12, 3, 2, 9, rank, world_size) for rank in range(world_size)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert all(len(part) == 12 // world_size for part in parts)
        assert sorted(key for part in parts for key in part) == sorted(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_the_sampler_whatever_the_workers(workers):
    sampler = StepSampler(size=6, batch_size=4, seed=0, start=2, end=6)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = list(step_loader(Squares(), sampler, workers))
    assert torch.equal(torch.get_rng_state(), state)  # dropout resumes from it
    assert len(batches) == 4
    for keys, (squares, seeds) in zip(sampler, batches, strict=True):
        assert squares.tolist() == [index**2 for index, _ in keys]
        assert seeds.tolist() == [seed for _, seed in keys]


def test_no_more_processes_read_than_there_are_cores():
    assert [reading_processes(wanted) for wanted in (0, 1)] == [0, 1]
    assert 1 <= reading_processes(10_000) <= (os.cpu_count() or 10_000)
    with warnings.catch_warnings(action="error"):  # torch's, of more workers than it likes
        step_loader(Squares(), StepSampler(10, 4, 0, 0, 3), workers=10_000)
