"""The order of training batches.

Every batch is a function of (seed, step) alone: resuming at step s needs no sampler state, and the
number of data workers changes nothing.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.images import view
from ..data.streaming import ImageStream, RandomViews


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


def reading_processes(wanted: int) -> int:
    """Processes that read data: as many as are wanted, and no more than there are cores."""
    return min(wanted, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else wanted)


def step_loader(dataset: Dataset, sampler: StepSampler, workers: int = 0) -> DataLoader:
    """Batches of `dataset` in the order of `sampler`."""
    workers = reading_processes(workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else every start draws from the state dropout resumes from
    )


@dataclass
class StreamOrder:
    """Batches of a streamed data set: its images in an order drawn with the seed, without an end.

    The order depends on the number of processes; a run that goes on passes over what it has had.
    """

    images: ImageStream
    size: int  # pixels a side
    crop: float  # largest resize factor before the random crop
    buffer: int  # images that are shuffled among each other

    def loader(
        self, batch_size: int, seed: int, passed: int, share: tuple[int, int], workers: int
    ) -> DataLoader:
        """Batches of this process.

        Args:
            batch_size: images of this process in a step.
            passed: steps that are done.
            share: (number of this process, number of processes).
        """
        crop = partial(view, size=self.size, crop=self.crop)
        views = RandomViews(self.images, crop, seed, share, passed * batch_size, self.buffer)
        return DataLoader(
            views, batch_size, num_workers=workers, generator=torch.Generator()
        )  # the generator: as in step_loader
