"""Code shards: a dataset tokenized once, so that generators train on ids alone.

A folder holds codes.json (what made it) and codes-00000.safetensors, ... with `ids` (n, V, T) and
`labels` (n,): V random views (crop and flip) of every image, T tokens in raster order. Tokenizers
with a detail codebook give pairs, `ids` (n, V, T, 2). Texts of the same images are in
captions-00000.json, ... where the source had any. Shards are memory-mapped: what a process holds of
them is what it last read.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..components.cluster_map import SKETCH_TOLERANCE, codebook_sketch
from ..components.vq_model import VQModel
from .hub_ids import is_hub_id

HEADER = "codes.json"
COUNTED = 2**22  # ids that are counted at once: 32 MiB as int64


class Codes(Dataset):
    """Tokenized images of one split.

    Items are asked for by `(index, seed)`; the seed picks the view. An item is `(ids, label)`, ids
    (T,) or (T, 2) int64.

    Raises:
        ValueError: a folder without code shards.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / HEADER).is_file():
            inside = sorted(str(path.parent) for path in self.folder.glob(f"*/{HEADER}"))
            if inside:  # what encode wrote, whole
                raise ValueError(
                    f"{self.folder} holds the codes of several splits; give {' or '.join(inside)}."
                )
            raise ValueError(
                f"{self.folder} holds no code shards ({HEADER} is missing); run encode first."
            )
        self.header = json.loads((self.folder / HEADER).read_text())
        self.shards: list[Tensor] = []  # (n, V, T) or (n, V, T, 2), uint16 or int32
        labels = []
        # The ids are mapped and cost memory only where they are read; the labels are copied, 8
        # bytes an image.
        for name in self.header["shards"]:
            with safe_open(self.folder / name, framework="pt") as shard:
                self.shards.append(shard.get_tensor("ids"))
                labels.append(shard.get_tensor("labels"))
        self.labels = torch.cat(labels).long()  # (images,)
        self.ends = list(accumulate(len(shard) for shard in self.shards))

    def __reduce__(self):
        # Another process maps the files itself instead of getting a copy of what they hold.
        return type(self), (self.folder,)

    @property
    def source(self) -> str:
        """Where the images came from: a folder or a Hub dataset."""
        return self.header.get("recipe", {}).get("data", "unknown")

    @property
    def ids(self) -> Tensor:
        """All ids (images, V, T) or (images, V, T, 2) in one tensor: a copy of all shards."""
        return torch.cat(self.shards)

    def captions(self, shard: int) -> list[str]:
        """Captions of the images of one shard.

        Raises:
            ValueError: codes without captions, or not one for each image.
        """
        if not self.header.get("captions"):
            raise ValueError(
                f"{self.folder} has no captions; encode with caption_column=NAME of the data set."
            )
        name = self.header["captions"][shard]
        texts = json.loads((self.folder / name).read_text(encoding="utf-8"))
        if len(texts) != len(self.shards[shard]):
            raise ValueError(f"{self.folder / name} has not one caption an image; encode again.")
        return texts

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, Tensor]:
        index, seed = key
        place = bisect_right(self.ends, index)
        shard = self.shards[place]
        # Seeds are running numbers: modulo V alone would deal the views out in turn. A
        # multiplicative hash mixes them; the low bits of a product are as regular as those of the
        # seed, so seven are dropped. Keep it: it is part of what a seed means in a resumed run.
        view = 0 if seed is None else (seed * 2654435761 >> 7) % shard.shape[1]
        return shard[index - self.ends[place], view].long(), self.labels[index]

    def first_views(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ids (B, T) or (B, T, 2) int64 and labels (B,): view 0 of every image.

        Of several processes, each gets its own share of every shard.
        """
        # Every shard is divided by itself: a strided slice of a mapped tensor is free, while a
        # slice of all shards together would first copy them.
        for end, shard in zip(self.ends, self.shards, strict=True):
            labels = self.labels[end - len(shard) : end][rank::world_size]
            shard = shard[rank::world_size]
            yield from (
                (ids[:, 0].long(), part)
                for ids, part in zip(shard.split(batch_size), labels.split(batch_size), strict=True)
                if len(ids)  # a shard of fewer images than processes leaves some without any
            )

    def counts(self) -> list[Tensor]:
        """How often every code occurs, (N,) int64, and every detail code, (M,), if there are any.

        All views count. Needs memory for the counts alone, however many shards there are.

        Raises:
            ValueError: a shard with an id that its header's codebook does not have.
        """
        sizes = [self.header["codebook_size"], self.header.get("detail_codebook_size")]
        found = [torch.zeros(size, dtype=torch.int64) for size in sizes if size]
        for shard in self.shards:
            flat = shard.flatten(0, 2).unsqueeze(-1).flatten(1)  # (n V T, 1) or (n V T, 2)
            # bincount takes int64, four times the size of the stored ids, so only a part is
            # converted at a time. An id beyond the codebook would lengthen its answer, hence the
            # check before.
            for part in flat.split(COUNTED):
                for total, ids in zip(found, part.long().unbind(1), strict=True):
                    if int(ids.max()) >= len(total):
                        raise ValueError(
                            f"{self.folder} holds id {int(ids.max())}, but the codebook has "
                            f"{len(total)} codes; encode again."
                        )
                    total += ids.bincount(minlength=len(total))
        return found

    def check_tokenizer(self, vq_model: VQModel) -> None:
        """Raise a ValueError unless these codes were made with this tokenizer's codebook."""
        own = vq_model.codebook_size, vq_model.detail_codebook_size
        sizes = self.header["codebook_size"], self.header.get("detail_codebook_size")
        if sizes != own or not self.made_with(vq_model.codebook):
            raise ValueError("these code shards were made by another tokenizer; encode again.")

    def made_with(self, codebook: Tensor) -> bool:
        """Whether these codes are of this codebook (N, d), as far as its sketch tells."""
        # A sketch instead of a hash: it still agrees after the tokenizer was stored in bfloat16.
        sketch = torch.tensor(self.header["codebook_sketch"])
        return bool((codebook_sketch(codebook) - sketch).abs().max() <= SKETCH_TOLERANCE)


def codes_folder(source: str | Path) -> Path:
    """The folder of code shards: `source` itself, or the cached download of a Hub dataset.

    Raises:
        ValueError: neither a folder here nor "user/name".
    """
    if Path(source).is_dir():
        return Path(source)
    if not is_hub_id(str(source)):
        raise ValueError(f"there is no folder {source} of code shards, and it is no Hub id.")
    return Path(snapshot_download(str(source), repo_type="dataset"))
