"""The order of training batches.

Every batch is a function of (seed, step) alone: resuming at step s needs no sampler state, and the
number of data workers changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


@dataclass
class StepSampler:
    """Batches of `(index, seed)` keys for steps start..end-1, this rank's share of each.

    Epoch e is the permutation of `size` items drawn with seed (seed, e); batches run across epoch
    borders, so every item is visited exactly once an epoch.
    """

    size: int  # number of items
    batch_size: int  # global batch, all ranks together
    seed: int
    start: int
    end: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, None
        for step in range(self.start, self.end):
            keys = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
                keys.append((int(order[position % self.size]), self.seed * 1_000_003 + position))
            yield keys[self.rank :: self.world_size]


def step_loader(dataset: Dataset, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """Batches of `dataset` in the order of `sampler`."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else every start draws from the state dropout resumes from
    )
