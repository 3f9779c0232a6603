"""Code shards with features of their captions, as `encode-text` writes them.

Beside the codes stands text.json (what made it) and text-00000.safetensors, ... with `features`
(all positions of all captions of the shard, C), float16, and `lengths` (n,) of the captions: no
padding is stored. They are memory-mapped as codes are.

Shapes: P prefix positions, C width of the features.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .codes import Codes

TEXT_HEADER = "text.json"


class CaptionedCodes(Codes):
    """Tokenized images of one split with features of their captions.

    An item is `(ids, label, features, mask)`: features (P, C) float16, padded on the left as the
    transformer takes them, and mask (P,) int64, 1 where they are none of the padding.

    Raises:
        ValueError: a folder without code shards or features, or with features of other codes.
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        path = self.folder / TEXT_HEADER
        if not path.is_file():
            raise ValueError(
                f"{self.folder} has no features of captions ({TEXT_HEADER} is missing); run "
                "encode-text first."
            )
        self.text = json.loads(path.read_text(encoding="utf-8"))
        self.prefix_length: int = self.text["prefix_length"]  # P
        self.text_dim: int = self.text["text_dim"]  # C
        # Features belong to these codes where the counts agree, shard by shard.
        self.features: list[Tensor] = []  # (positions of a shard, C)
        self.stops: list[Tensor] = []  # (n,) where the features of an image end
        for name, shard in zip(self.text["shards"], self.shards, strict=True):
            with safe_open(self.folder / name, framework="pt") as file:
                self.features.append(file.get_tensor("features"))
                lengths = file.get_tensor("lengths").long()
            if len(lengths) != len(shard) or int(lengths.sum()) != len(self.features[-1]):
                raise ValueError(f"{self.folder / name} is of other codes; run encode-text again.")
            self.stops.append(lengths.cumsum(0))

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *super().__getitem__(key), *self.caption(key[0])

    def caption(self, index: int) -> tuple[Tensor, Tensor]:
        """Features (P, C) and mask (P,) of one image."""
        place = bisect_right(self.ends, index)
        row = index - (self.ends[place] - len(self.shards[place]))
        stops = self.stops[place]
        found = self.features[place][int(stops[row - 1]) if row else 0 : int(stops[row])]
        features = torch.zeros(self.prefix_length, self.text_dim, dtype=found.dtype)
        mask = torch.zeros(self.prefix_length, dtype=torch.int64)
        features[len(mask) - len(found) :], mask[len(mask) - len(found) :] = found, 1
        return features, mask

    def first_views(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, ...]]:
        """Batches of ids, labels, features (B, P, C) and masks (B, P), as in the parent class."""
        share = range(rank, len(self), world_size)
        for start in range(0, len(share), batch_size):
            items = [self[index, None] for index in share[start : start + batch_size]]
            yield tuple(torch.stack(column) for column in zip(*items, strict=True))
