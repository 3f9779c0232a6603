"""The smallest data set that a training loop takes."""

import torch
from torch.utils.data import Dataset


class Points(Dataset):
    """Points (4,) and the sums of their coordinates."""

    def __init__(self):
        self.points = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return 50

    def __getitem__(self, key):
        return self.points[key[0]], self.points[key[0]].sum(0, keepdim=True)
