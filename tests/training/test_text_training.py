"""Text to image: captions to T5 features beside the codes, and generators trained on them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import PREFIX, TEXT_DIM, build_map, build_t5, build_tokenizer, build_vq
from codeclade import CodecladeTextPipeline
from codeclade.cli import main
from codeclade.components.text_pipeline import pad_left
from codeclade.data.captioned import CaptionedCodes
from codeclade.data.codes import Codes
from codeclade.training.generator import train_generator, validation_loss
from codeclade.training.text_features import TextRecipe, encode_text
from generator_runs import RECIPE, write_codes

TEXT = replace(RECIPE, condition="text", dropout=0.0)
WORDS = ("a", "red", "dog", "cat", "on", "grass")


def caption(split: str, index: int) -> str:
    """One to six words."""
    return " ".join(WORDS[(index + len(split) + i) % 6] for i in range(1 + index % 6))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    build_t5().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def write_captions(folder) -> None:
    for split in ("train", "validation"):
        header = json.loads((folder / split / "codes.json").read_text())
        count = len(Codes(folder / split))
        texts = [caption(split, i) for i in range(count)]
        (folder / split / "captions-00000.json").write_text(json.dumps(texts))
        header["captions"] = ["captions-00000.json"]
        (folder / split / "codes.json").write_text(json.dumps(header))


@pytest.fixture(scope="module")
def codes(t5, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    write_codes(folder, build_vq())
    write_captions(folder)
    words = ["encode-text", "--codes", str(folder), f"text_encoder={t5}", "batch_size=5"]
    assert main([*words, f"prefix_length={PREFIX}"]) == 0
    return folder


def test_features_are_those_of_the_pipeline(codes):
    """As `CodecladeTextPipeline` makes them of the same captions, up to float16."""
    encoder, tokenizer = build_t5(), build_tokenizer()
    texts = [caption("train", i) for i in range(32)]
    tokens = tokenizer(
        texts, max_length=PREFIX, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
    expected, masks = pad_left(output.last_hidden_state, tokens.attention_mask, PREFIX)
    train = CaptionedCodes(codes / "train")
    assert (train.prefix_length, train.text_dim) == (PREFIX, TEXT_DIM)
    for index in (0, 3, 31):
        ids, label, features, mask = train[index, None]
        assert torch.equal(mask, masks[index])
        torch.testing.assert_close(features, expected[index], atol=2e-3, rtol=2e-3)
        plain = Codes(codes / "train")[index, None]
        assert torch.equal(ids, plain[0]) and torch.equal(label, plain[1])
    # No padding is stored.
    stored = load_file(codes / "train" / "text-00000.safetensors")
    assert len(stored["features"]) == int(stored["lengths"].sum()) == int(masks.sum())
    # Shares of processes cover every image once.
    whole = torch.cat([batch[2] for batch in train.first_views(5)])
    parts = torch.cat([torch.cat([b[2] for b in train.first_views(5, r, 2)]) for r in (0, 1)])
    assert torch.equal(parts[:16], whole[::2]) and torch.equal(parts[16:], whole[1::2])


def test_a_second_call_keeps_finished_shards(codes, t5):
    file = codes / "train" / "text-00000.safetensors"
    before = file.stat().st_mtime_ns
    recipe = TextRecipe(text_encoder=t5, prefix_length=PREFIX, batch_size=3)
    encode_text(recipe, codes)
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("scheme", ["token", "cluster", "cluster_token"])
def test_a_generator_of_captions_is_trained_and_saved(codes, tmp_path, scheme):
    vq_model = build_vq()
    cluster_map = build_map(vq_model.codebook) if scheme != "token" else None
    recipe = replace(TEXT, scheme=scheme, sample_every=3, context_noise="uniform")
    if scheme == "cluster_token":
        recipe = replace(recipe, sparse_head=True)
    train_generator(recipe, codes, vq_model, cluster_map, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert (tmp_path / "run" / "samples" / "step-00000003.png").is_file()
    pipe = CodecladeTextPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    config = pipe.transformer.config
    assert (config.text_dim, config.prefix_length, config.num_classes) == (TEXT_DIM, PREFIX, 0)
    assert pipe.config.guidance_scale == 2.0
    held_out = CaptionedCodes(codes / "validation")
    mapping = cluster_map.mapping if scheme == "cluster" else None
    loss = validation_loss(pipe.transformer, held_out, mapping)
    assert loss == pytest.approx(log[-1]["validation_loss"], abs=1e-5)
    # The same by the pipeline's own condition: masks of training are those of sampling.
    pipe = CodecladeTextPipeline.from_pretrained(
        tmp_path / "run" / "pipeline", tokenizer=build_tokenizer(), text_encoder=build_t5()
    )
    texts = held_out.captions(0)
    condition, _ = pipe.encode_condition(texts)
    tokens = torch.stack([held_out[i, None][0] for i in range(len(texts))])
    tokens = tokens if mapping is None else mapping[tokens]
    condition["attention_mask"] = condition["attention_mask"][:, :-1]
    with torch.no_grad():
        again = pipe.transformer(tokens[:, :-1], labels=tokens, **condition).loss.item()
    assert again == pytest.approx(loss, abs=2e-3)


def test_the_second_stage_goes_on_at_a_larger_grid(codes, t5, tmp_path, capsys):
    vq_model = build_vq()
    first = train_generator(TEXT, codes, vq_model, None, tmp_path / "first")
    wide = tmp_path / "wide"
    for split, count in (("train", 8), ("validation", 2)):
        shard = load_file(codes / split / "codes-00000.safetensors")
        ids = torch.randint(32, (count, 1, 36)).int()
        (wide / split).mkdir(parents=True)
        save_file(
            {"ids": ids, "labels": shard["labels"][:count].clone()},
            wide / split / "codes-00000.safetensors",
        )
        header = json.loads((codes / split / "codes.json").read_text())
        (wide / split / "codes.json").write_text(json.dumps(header | {"grid_size": 6}))
    write_captions(wide)
    encode_text(TextRecipe(text_encoder=t5, prefix_length=PREFIX), wide)
    recipe = replace(TEXT, init_from=str(tmp_path / "first" / "pipeline"), steps=1)
    recipe = replace(recipe, learning_rate=1e-9, ema_decay=0.0)
    second = train_generator(recipe, wide, vq_model, None, tmp_path / "second")
    assert "grid 4 becomes 6" in capsys.readouterr().err
    assert second.transformer.config.grid_size == 6
    for name, value in first.transformer.state_dict().items():
        torch.testing.assert_close(second.transformer.state_dict()[name], value, atol=1e-6, rtol=0)


def test_what_is_missing_is_said_first(codes, t5, tmp_path, capsys):
    vq_model = build_vq()
    bare = write_codes(tmp_path / "bare", vq_model)
    assert main(["encode-text", "--codes", str(bare), f"text_encoder={t5}"]) == 2
    assert "has no captions; encode with caption_column=NAME" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has no features of captions .* run encode-text first"):
        train_generator(TEXT, bare, vq_model, None, tmp_path / "run")
    assert main(["encode-text", "--codes", str(codes), f"text_encoder={tmp_path}"]) == 2
    assert "is no folder or repository with a T5 encoder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="condition is 'words'; it must be one of class, text"):
        replace(RECIPE, condition="words")
    with pytest.raises(ValueError, match="prefix_length is 0; it must be at least 1"):
        TextRecipe(text_encoder=t5, prefix_length=0)
