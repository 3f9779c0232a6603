"""Code shards: a dataset tokenized once, so that generators train on ids alone.

A folder holds codes.json (what made it) and codes-00000.safetensors, ... with `ids` (n, V, T) and
`labels` (n,): V random views (crop and flip) of every image, T tokens in raster order. Tokenizers
with a detail codebook give pairs, `ids` (n, V, T, 2).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..components.cluster_map import codebook_sketch
from ..components.vq_model import VQModel
from .data import LabelledImages, load_images, to_pixels

HEADER = "codes.json"


@dataclass
class EncodeRecipe:
    """Settings of `codeclade encode`."""

    data: str  # image folder, parquet folder or Hub dataset
    image_size: int  # pixels a side
    classes: list | dict = field(default_factory=list)  # names to use; empty = all
    views: int = 2  # random crops and flips of every training image; validation has one, centred
    crop: float = 1.1  # largest resize factor before the random crop
    shard_size: int = 10_000  # images a shard
    batch_size: int = 64  # images that go through the tokenizer at once
    seed: int = 0  # of the random views


class Codes(Dataset):
    """Tokenized images of one split.

    Items are asked for by `(index, seed)`; the seed picks the view. An item is `(ids, label)`, ids
    (T,) int64.

    Raises:
        ValueError: a folder without code shards.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / HEADER).is_file():
            raise ValueError(
                f"{folder} holds no code shards ({HEADER} is missing); run encode first."
            )
        self.header = json.loads((folder / HEADER).read_text())
        shards = [load_file(folder / name) for name in self.header["shards"]]
        self.ids = torch.cat([shard["ids"] for shard in shards])  # (n, V, T) uint16 or int32
        self.labels = torch.cat([shard["labels"] for shard in shards]).long()

    @property
    def source(self) -> str:
        """Where the images came from: a folder or a Hub dataset."""
        return self.header.get("recipe", {}).get("data", "unknown")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, Tensor]:
        index, seed = key
        view = 0 if seed is None else (seed * 2654435761 >> 7) % self.ids.shape[1]
        return self.ids[index, view].long(), self.labels[index]

    def check_tokenizer(self, vq_model: VQModel) -> None:
        """Raise a ValueError unless these codes were made with this tokenizer's codebook."""
        sketch = torch.tensor(self.header["codebook_sketch"])
        gap = (codebook_sketch(vq_model.codebook) - sketch).abs().max()
        if self.header["codebook_size"] != vq_model.codebook_size or gap > 0.02:
            raise ValueError("these code shards were made by another tokenizer; encode again.")


def codes_folder(source: str | Path) -> Path:
    """The folder of code shards: `source` itself, or the cached download of a Hub dataset.

    Raises:
        ValueError: neither a folder here nor "user/name".
    """
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise ValueError(f"there is no folder {source} of code shards, and it is no Hub id.")
    return Path(snapshot_download(str(source), repo_type="dataset"))


def encode(recipe: EncodeRecipe, vq_model: VQModel, out: str | Path) -> None:
    """Tokenize the training and validation images of a source into out/train and out/validation.

    Finished shards of an interrupted run with the same recipe are kept. preview.png shows a few
    images decoded from their codes, under their labels' order in codes.json, to check by eye.
    """
    for split in ("train", "validation"):
        images = load_images(recipe.data, split, recipe.image_size, recipe.classes, recipe.crop)
        _encode_split(recipe, vq_model, images, split, Path(out) / split)


@torch.no_grad()
def _encode_split(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabelledImages, split: str, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    views = recipe.views if split == "train" else 1
    starts = range(0, len(images), recipe.shard_size)
    header = {
        "split": split,
        "images": len(images),
        "views": views,
        "grid_size": recipe.image_size // vq_model.downsample,
        "codebook_size": vq_model.codebook_size,
        "detail_codebook_size": vq_model.detail_codebook_size,
        "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
        "class_names": images.class_names,
        "recipe": asdict(recipe),
        "shards": [f"codes-{i:05d}.safetensors" for i in range(len(starts))],
    }
    begun = folder / "codes.partial.json"
    keep = begun.is_file() and json.loads(begun.read_text()) == header
    begun.write_text(json.dumps(header, indent=1))
    largest = max(vq_model.codebook_size, vq_model.detail_codebook_size or 0)
    dtype = torch.uint16 if largest <= 2**16 else torch.int32
    with tqdm(total=len(images), desc=f"encode {split}", unit="image") as bar:
        for start, name in zip(starts, header["shards"], strict=True):
            indices = range(start, min(start + recipe.shard_size, len(images)))
            if not (keep and (folder / name).is_file()):
                shard = _encode_shard(recipe, vq_model, images, indices, views, split, bar)
                shard = {"ids": shard.to(dtype), "labels": images.labels[list(indices)].int()}
                save_file(shard, folder / f"{name}.partial")
                (folder / f"{name}.partial").rename(folder / name)
            bar.n = indices.stop
            bar.refresh()
    begun.rename(folder / HEADER)
    _save_preview(vq_model, Codes(folder), folder / "preview.png")


def _encode_shard(
    recipe: EncodeRecipe, vq_model: VQModel, images: LabelledImages, indices: range, views: int,
    split: str, bar: tqdm,
) -> Tensor:  # fmt: skip
    """Ids (n, V, T) of the images at `indices`."""
    rows = []
    for start in range(indices.start, indices.stop, recipe.batch_size):
        batch = range(start, min(start + recipe.batch_size, indices.stop))
        seeds = [
            None if split != "train" else (recipe.seed * len(images) + i) * views + view
            for i in batch
            for view in range(views)
        ]
        pixels = torch.stack(
            [images[i, seed][0] for i, seed in zip(_repeat(batch, views), seeds, strict=True)]
        )
        ids = vq_model.encode(to_pixels(pixels).to(vq_model.device, vq_model.dtype)).ids
        rows.append(ids.flatten(1, 2).unflatten(0, (-1, views)).cpu())
        bar.update(len(batch))
    return torch.cat(rows)


def _repeat(items: range, times: int) -> list[int]:
    return [item for item in items for _ in range(times)]


@torch.no_grad()
def _save_preview(vq_model: VQModel, codes: Codes, path: Path, count: int = 8) -> None:
    chosen = range(0, len(codes), max(1, len(codes) // count))
    ids = torch.stack([codes[i, None][0] for i in chosen])[:count]
    decoded = vq_model.decode(ids.to(vq_model.device)).float().cpu()
    row = torch.cat(list(decoded), dim=2) * 127.5 + 127.5
    Image.fromarray(row.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(path)
