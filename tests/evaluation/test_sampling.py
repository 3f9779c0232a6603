"""Sampling at scale: every image has its own seed, whatever the batches, processes and stops."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from codeclade.cli import main
from codeclade.data.images import load_images
from codeclade.evaluation import sampling
from codeclade.evaluation.sampling import SampleParts, Sampling
from evaluation.conftest import CLASSES


def made(pipe, folder, batch_size=32, processes=1, **changes) -> torch.Tensor:
    """All images (N, 3, S, S) of a set, written by some processes one after another."""
    folder.mkdir(exist_ok=True)
    parts = SampleParts(folder, pipe, Sampling(**({"count": 3, "seed": 5} | changes)))
    for rank in reversed(range(processes)):
        parts.make(batch_size, rank, processes)
    images = torch.cat([images for images, _ in parts.batches()])
    parts.delete()
    assert not list(folder.iterdir())
    return images


def test_images_do_not_depend_on_batches_or_processes(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    pipe = tiny_pipeline("cluster")
    found = [made(pipe, tmp_path / "s", size, n) for size, n in ((1, 1), (3, 2), (32, 3))]
    assert found[0].shape == (15, 3, 16, 16) and found[0].dtype == torch.uint8
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(found[0], made(pipe, tmp_path / "s", seed=6))
    # As the pipeline itself makes image 4 of these: class 1, its own seed.
    own = torch.Generator().manual_seed(5 * 1_000_003 + 4)
    alone = pipe(1, generator=own, output_type="pt").images
    assert torch.equal(found[0][4], (alone[0] * 255).round().byte())


def test_every_setting_reaches_the_pipeline(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline("cluster", guidance_scale=3.0)
    plain = made(pipe, tmp_path / "s")
    for change in (
        {"guidance_scale": 1.0},
        {"guidance_schedule": {"name": "interval", "last_step": 0}},
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 0.1},
    ):
        assert not torch.equal(plain, made(pipe, tmp_path / "s", **change)), change
    assert torch.equal(plain, made(pipe, tmp_path / "s", guidance_scale=3.0))
    assert made(pipe, tmp_path / "s", size=8).shape == (15, 3, 8, 8)
    labels = Sampling(classes="random", count=40).labels(pipe)
    assert len(labels) == 200 and set(labels.tolist()) == set(range(5))
    assert len(set(labels.bincount().tolist())) > 1
    with pytest.raises(ValueError, match="--classes some must be one of balanced, random"):
        Sampling(classes="some")


def test_a_stopped_run_goes_on(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    pipe = tiny_pipeline("cluster")
    whole = made(pipe, tmp_path / "whole")
    parts = SampleParts(tmp_path, pipe, Sampling(3, 5))
    assert parts.missing == [0, 1, 2, 3]
    one, calls = sampling.sample_images, []

    def stops(pipe, plan, numbers, *rest):
        calls.append(numbers)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return one(pipe, plan, numbers, *rest)

    monkeypatch.setattr(sampling, "sample_images", stops)
    with pytest.raises(KeyboardInterrupt):
        parts.make(4)
    assert parts.missing == [2, 3]
    again = SampleParts(tmp_path, pipe, Sampling(3, 5))
    again.make(4)
    assert calls[3:] == [[8, 9, 10, 11], [12, 13, 14]]
    assert torch.equal(torch.cat([images for images, _ in again.batches()]), whole)
    # Parts of other settings, or of another pipeline, are others.
    assert len(SampleParts(tmp_path, pipe, Sampling(3, 6)).missing) == 4
    assert len(SampleParts(tmp_path, tiny_pipeline("cluster", 1), Sampling(3, 5)).missing) == 4


def test_the_npz_file_is_what_adm_reads(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    pipe = tiny_pipeline("cluster")
    parts = SampleParts(tmp_path, pipe, Sampling(3))
    parts.make(4)
    parts.write_npz(tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as file:
        assert file.files == ["arr_0"]
        rows = file["arr_0"]
    assert rows.shape == (15, 16, 16, 3) and rows.dtype == np.uint8
    images = torch.cat([images for images, _ in parts.batches()])
    assert np.array_equal(rows, images.permute(0, 2, 3, 1).numpy())


def test_the_parquet_file_is_data(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PART", 4)
    (tmp_path / "samples").mkdir()
    files = {"--npz": tmp_path / "images.npz", "--parquet": tmp_path / "samples" / "test.parquet"}
    command = ["evaluate", str(saved), "--images", "3", "--samples-only", "--device", "cpu"]
    assert main([*command, *(str(word) for pair in files.items() for word in pair)]) == 0
    with np.load(files["--npz"]) as file:
        rows = file["arr_0"]
    images = load_images(str(tmp_path / "samples"), "test", 16, whole=True)
    names = [images.class_names[i] for i in images.labels]
    assert names == [name for name in CLASSES for _ in range(3)]
    found = [np.asarray(images.photograph(i)) for i in range(15)]
    assert np.array_equal(np.stack(found), rows)


@pytest.mark.slow  # three processes that import everything
def test_two_processes_write_what_one_writes(saved, tmp_path):
    command = ["evaluate", str(saved), "--images", "30", "--samples-only", "--device", "cpu"]
    command += ["--npz"]
    assert main([*command, str(tmp_path / "one.npz")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "-m", "codeclade", *command, str(tmp_path / "two.npz")]
    result = subprocess.run(launch, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert np.array_equal(one["arr_0"], two["arr_0"]) and len(one["arr_0"]) == 150


def test_a_plain_resize_is_of_what_the_decoder_gives(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline("cluster")
    with torch.no_grad():
        pipe.vq_model.decoder.conv_out.weight *= 50  # far beyond white and black
    own = [torch.Generator().manual_seed(5 * 1_000_003 + i) for i in range(15)]
    ids = pipe([i // 3 for i in range(15)], generator=own, output_type="ids").images
    pixels = pipe.vq_model.decode(ids)
    assert pixels.abs().max() > 2
    # As LlamaGen's sample_c2i_ddp.py does, which clamps last.
    smaller = torch.nn.functional.interpolate(pixels, size=(8, 8), mode="bicubic")
    wanted = torch.clamp(127.5 * smaller + 128.0, 0, 255).byte()
    assert torch.equal(made(pipe, tmp_path / "s", size=8, plain_resize=True), wanted)
    assert not torch.equal(made(pipe, tmp_path / "s", size=8), wanted)
