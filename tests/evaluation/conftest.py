"""Photographs, code shards and saved pipelines of the tests of `codeclade evaluate`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from codeclade.components.cluster_map import codebook_sketch
from codeclade.data.codes import Codes

CLASSES = ("goldfish", "tabby", "golden retriever", "lion", "alp")


@pytest.fixture(autouse=True)
def no_lpips(tmp_path, monkeypatch):
    """Whether a user has the weights of LPIPS must not change what is measured here."""
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path / "no-lpips"))


@pytest.fixture
def photos(tmp_path):
    """An image folder with training and validation pictures of five ImageNet classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("validation", 4)):
        for name in CLASSES:
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    """A pipeline of these classes on disk."""
    names = dict(enumerate(CLASSES))
    tiny_pipeline("cluster", id2label=names).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def write_codes():
    """Write random code shards of a tokenizer, of seven images with two views each."""

    def write(folder, vq_model, pairs: bool, images: int = 7) -> Codes:
        draw = torch.Generator().manual_seed(0)
        shape = (images, 2, 16, 2) if pairs else (images, 2, 16)
        ids = torch.randint(24, shape, generator=draw).to(torch.uint16)
        labels = torch.randint(5, (images,), generator=draw).int()
        folder.mkdir()
        save_file({"ids": ids, "labels": labels}, folder / "codes-00000.safetensors")
        header = {
            "codebook_size": vq_model.codebook_size,
            "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
            "detail_codebook_size": vq_model.detail_codebook_size,
            "shards": ["codes-00000.safetensors"],
        }
        (folder / "codes.json").write_text(json.dumps(header))
        return Codes(folder)

    return write
