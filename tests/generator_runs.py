"""A short generator run: its recipe, and random code shards to train on."""

import json

import torch
from safetensors.torch import save_file

from builders import DETAILS
from codeclade.components.cluster_map import codebook_sketch
from codeclade.training.generator import GeneratorRecipe

RECIPE = GeneratorRecipe(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    steps=3,
    batch_size=4,
    warmup=1,
    learning_rate=1e-2,
    mixed_precision="no",
    tracker="none",
    log_every=1,
    evaluate_every=3,
    save_every=3,
)


def write_codes(folder, vq_model, images: int = 32, pairs: bool = False, held_out: int = 4):
    """Shards of random codes on a 4x4 grid."""
    draw = torch.Generator().manual_seed(0)
    size = vq_model.codebook_size
    for split, count in (("train", images), ("validation", held_out)):
        ids = torch.randint(size, (count, 1, 16), generator=draw)
        if pairs:
            ids = torch.stack([ids, torch.randint(DETAILS, ids.shape, generator=draw)], dim=-1)
        place = folder / split
        place.mkdir(parents=True)
        labels = torch.arange(count) % 5
        save_file({"ids": ids.int(), "labels": labels.int()}, place / "codes-00000.safetensors")
        header = {
            "shards": ["codes-00000.safetensors"],
            "codebook_size": size,
            "detail_codebook_size": DETAILS if pairs else None,
            "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
            "grid_size": 4,
            "class_names": ["a", "b", "c", "d", "e"],
        }
        (place / "codes.json").write_text(json.dumps(header))
    return folder
