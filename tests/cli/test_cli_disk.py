"""Disks that are full and folders that cannot be written: one sentence, and no half of anything."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from builders import build_vq
from codeclade.cli import main

RUN = """
about: {title: Toy, summary: A toy.}
tokenizer:
  data: PHOTOS
  image_size: 16
  block_out_channels: [32, 32]
  layers_per_block: 1
  latent_channels: 32
  codebook_size: 16
  codebook_dim: 4
  perceptual_weight: 0.0
  steps: 2
  save_every: 1
  batch_size: 8
  mixed_precision: no
encode: {data: PHOTOS, image_size: 16, views: 4}
"""


@contextmanager
def full_disk(size: int):
    """No file can grow beyond this many bytes, which is what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def folder(tmp_path):
    """A recipe, a tokenizer and 40 photographs."""
    (tmp_path / "photos").mkdir()
    for i in range(40):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "toy.yaml").write_text(RUN.replace("PHOTOS", str(tmp_path / "photos")))
    build_vq(codebook_size=16).save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def command(folder, verb: str, out) -> list[str]:
    given = ["--tokenizer", f"{folder}/tokenizer"] if verb == "encode" else []
    return [verb, "--recipe", f"{folder}/toy.yaml", *given, "--out", str(out)]


def sentence(capsys, verb: str) -> str:
    """What the command said, which must be one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if f"codeclade {verb}:" in line]
    assert len(lines) == 1 and len(lines[0]) < 400
    return lines[0]


def test_codes_on_a_full_disk(folder, capsys):
    out = folder / "codes"
    main(command(folder, "encode", folder / "whole"))
    with full_disk(3000):
        assert main(command(folder, "encode", out)) == 2
    assert "codes-00000.safetensors cannot be written; is the disk full?" in sentence(
        capsys, "encode"
    )
    assert not list(out.rglob("codes.json")) and not list(out.rglob("*.safetensors"))
    assert not list(out.rglob(".partial*"))
    # With room again the same command goes on.
    assert main(command(folder, "encode", out)) == 0
    name = "train/codes-00000.safetensors"
    assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_checkpoint_on_a_full_disk(folder, capsys):
    out = folder / "run"
    assert main([*command(folder, "train-tokenizer", out), "steps=1"]) == 0
    with full_disk(100_000):
        assert main([*command(folder, "train-tokenizer", out), "steps=2"]) == 2
    said = sentence(capsys, "train-tokenizer")
    assert "cannot be written; is the disk full?" in said or "File too large" in said
    assert main([*command(folder, "train-tokenizer", out), "steps=2"]) == 0


@pytest.mark.parametrize("verb", ["encode", "train-tokenizer"])
@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_folder_that_cannot_be_written(folder, capsys, verb, place):
    # Root may write anywhere but where the kernel itself says no.
    out = folder / "toy.yaml" / "out" if place == "below a file" else "/sys/kernel/codeclade"
    assert main(command(folder, verb, out)) == 2
    assert str(out).split("/out")[0] in sentence(capsys, verb)


def test_weights_of_a_damaged_disk_are_no_traceback(folder, capsys):
    file = next((folder / "tokenizer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert main(command(folder, "encode", folder / "codes")) == 2
    assert "is truncated" in sentence(capsys, "encode")
