"""`encode` and `train-tokenizer` of streamed data sets; parquet files here stand for a Hub."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from builders import build_vq
from codeclade.data.codes import Codes
from codeclade.data.columns import Columns
from codeclade.data.streaming import open_stream
from codeclade.training import encode_stream
from codeclade.training.code_shards import split_header
from codeclade.training.encode import EncodeRecipe, encode
from codeclade.training.run import Run
from codeclade.training.tokenizer import TokenizerRecipe, train_tokenizer


def png(seed: int) -> dict:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two files of 13 training images, and one of five for validation."""
    folder = tmp_path_factory.mktemp("source")
    label = ClassLabel(names=["blue", "red"])
    features = Features({"image": Image(), "label": label, "text": Value("string")})
    for name, first, count in (("train-0", 0, 13), ("train-1", 13, 13), ("validation-0", 50, 5)):
        numbers = range(first, first + count)
        rows = {
            "image": [png(number) for number in numbers],
            "label": [number % 2 for number in numbers],
            "text": [f"image {number}" for number in numbers],
        }
        Dataset.from_dict(rows, features).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def settings(source: str, **changes) -> EncodeRecipe:
    given = {"views": 2, "shard_size": 5, "batch_size": 4, "caption_column": "text"}
    return EncodeRecipe(data=source, image_size=16, **given | changes)


def rows_of(codes: Codes) -> set[tuple]:
    """Ids, label and caption of every image."""
    texts = [text for number in range(len(codes.shards)) for text in codes.captions(number)]
    ids = codes.ids.flatten(1).tolist()
    return set(zip(map(tuple, ids), codes.labels.tolist(), texts, strict=True))


@pytest.fixture(scope="module")
def streamed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("streamed")
    encode(settings(source, streaming=True), build_vq(), out)
    return out


def test_streamed_codes_are_those_of_a_download(source, streamed, tmp_path):
    encode(settings(source), build_vq(), tmp_path)
    whole, found = Codes(tmp_path / "validation"), Codes(streamed / "validation")
    assert torch.equal(whole.ids, found.ids) and torch.equal(whole.labels, found.labels)
    whole, found = Codes(tmp_path / "train"), Codes(streamed / "train")
    assert found.ids.shape == (26, 2, 16) and torch.equal(whole.labels, found.labels)
    assert found.captions(5) == ["image 25"] and found.header["images"] == 26
    assert found.header["class_names"] == ["blue", "red"]
    assert (streamed / "train" / "preview.png").is_file()
    assert not (streamed / "train" / encode_stream.PARTIAL).exists()


def test_an_interrupted_stream_keeps_its_shards(source, streamed, tmp_path, monkeypatch):
    recipe, calls = settings(source, streaming=True), []
    whole = encode_stream._encode_shard

    def stopped(*args):
        calls.append(args[-2].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(encode_stream, "_encode_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode(recipe, build_vq(), tmp_path)
    encode(recipe, build_vq(), tmp_path)
    assert calls[3:7] == [f"codes-0000-{number:05d}.safetensors" for number in range(2, 6)]
    for split in ("train", "validation"):
        assert torch.equal(Codes(tmp_path / split).ids, Codes(streamed / split).ids)
    encode(recipe, build_vq(), tmp_path)  # all there
    with pytest.raises(ValueError, match=r"holds other codes \(views differ\)"):
        encode(settings(source, streaming=True, views=3), build_vq(), tmp_path)


def test_processes_share_a_stream(source, streamed, tmp_path, monkeypatch):
    """One process after the other: what they write does not depend on how they meet."""
    recipe, vq_model, folder = settings(source, streaming=True), build_vq(), tmp_path / "train"
    stream = open_stream(recipe.data, "train", columns=Columns(caption="text"))
    header = split_header(recipe, vq_model, stream.class_names, "train")
    folder.mkdir()
    (folder / encode_stream.PARTIAL).write_text(json.dumps(header | {"processes": 2}))
    for rank in (1, 0):
        alone = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        alone.wait_for_everyone = lambda: None
        monkeypatch.setattr(encode_stream, "all_processes", lambda alone=alone: alone)
        encode_stream.encode_stream(recipe, vq_model, stream, header, folder)
    found = Codes(tmp_path / "train")
    assert len(found.shards) == 6 and rows_of(found) == rows_of(Codes(streamed / "train"))


def tokenizer(source: str, **changes) -> TokenizerRecipe:
    given = {
        "block_out_channels": [32, 32], "layers_per_block": 1, "latent_channels": 32,
        "codebook_size": 8, "codebook_dim": 4, "perceptual_weight": 0.0, "steps": 5,
        "batch_size": 8, "mixed_precision": "no", "log_every": 1, "save_every": 3,
        "evaluate_every": 5, "streaming": True, "shuffle_buffer": 4, "tracker": "none",
    }  # fmt: skip
    return TokenizerRecipe(data=source, image_size=16, **given | changes)


def test_a_tokenizer_is_trained_on_a_stream_and_goes_on(source, tmp_path, monkeypatch, capsys):
    whole = train_tokenizer(tokenizer(source), tmp_path / "whole")
    assert "streamed images, 2 classes; 5 for validation" in capsys.readouterr().err
    record = json.loads((tmp_path / "whole" / "vq_model" / "training.json").read_text())
    assert "images" not in record and record["steps"] == 5
    save = Run.save

    def save_then_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(tokenizer(source), tmp_path / "stopped")
    monkeypatch.setattr(Run, "save", save)
    resumed = train_tokenizer(tokenizer(source), tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 2.0}, "give steps, not epochs"),
        ({"workers": 2}, "must be 0 or 1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
    ],
)
def test_settings_that_a_stream_does_not_take(source, changes, words):
    with pytest.raises(ValueError, match=words):
        tokenizer(source, **changes)
    with pytest.raises(ValueError, match="workers is 1; with streaming"):
        settings(source, streaming=True, workers=1)
