"""Encode, tokenizer and generator training on a tiny image folder: files, resuming, baselines."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from codeclade import ClusterMap, CodecladePipeline, VQModel
from codeclade.data.codes import Codes
from codeclade.data.images import load_images
from codeclade.data.pixels import to_pixels
from codeclade.training.dead_codes import CodeUsage, revive_dead_codes
from codeclade.training.encode import EncodeRecipe, encode
from codeclade.training.generator import (
    GeneratorRecipe,
    baselines,
    train_generator,
    validation_loss,
)
from codeclade.training.tokenizer import TokenizerRecipe, train_tokenizer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An image folder of two classes, 30 images each, plain colors with noise."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for name, color in (("blue", (40, 60, 200)), ("red", (210, 50, 40))):
        (folder / name).mkdir()
        for i in range(30):
            noise = torch.randint(-30, 30, (20, 16, 3), generator=generator)
            pixels = (torch.tensor(color) + noise).clamp(0, 255).byte()
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


def tokenizer_recipe(photos, **changes) -> TokenizerRecipe:
    settings = {
        "data": str(photos),
        "image_size": 16,
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "latent_channels": 32,
        "codebook_size": 16,
        "codebook_dim": 4,
        "perceptual_weight": 0.0,
        "revive_every": 2,
        "steps": 6,
        "batch_size": 8,
        "warmup": 1,
        "learning_rate": 5e-3,
        "mixed_precision": "no",
        "tracker": "none",
        "log_every": 1,
        "save_every": 3,
    }
    return TokenizerRecipe(**settings | changes)


@pytest.fixture(scope="module")
def tokenizer(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(tokenizer_recipe(photos), out)
    return out


@pytest.fixture(scope="module")
def codes(photos, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    vq_model = VQModel.from_pretrained(tokenizer / "vq_model").eval()
    encode(EncodeRecipe(data=str(photos), image_size=16, views=3, shard_size=25), vq_model, out)
    return out


@pytest.fixture(scope="module")
def parts(tokenizer):
    vq_model = VQModel.from_pretrained(tokenizer / "vq_model").eval()
    return vq_model, ClusterMap.from_labels(torch.arange(16) // 2, vq_model.codebook)


GENERATOR = GeneratorRecipe(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    steps=6,
    batch_size=8,
    warmup=1,
    learning_rate=1e-2,
    mixed_precision="no",
    tracker="none",
    log_every=1,
    evaluate_every=3,
    save_every=3,
)


def read_log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_tokenizer_run_writes_a_loadable_model_and_its_record(tokenizer):
    model = VQModel.from_pretrained(tokenizer / "vq_model")
    assert model.codebook.shape == (16, 4)
    assert (tokenizer / "reconstructions.png").is_file()
    last = read_log(tokenizer)[-1]
    assert 0 < last["codebook_usage"] <= 1
    assert 1 <= last["codebook_perplexity"] <= 16
    assert 5 < last["psnr"] < 60


def test_tokenizer_loss_falls(tokenizer):
    pixel = [line["pixel"] for line in read_log(tokenizer) if "pixel" in line]
    assert pixel[-1] < 0.8 * pixel[0]


def test_a_tokenizer_is_saved_with_its_averaged_weights(photos, tmp_path):
    recipe = tokenizer_recipe(
        photos, ema_decay=0.5, evaluate_every=2, gradient_accumulation_steps=2
    )
    train_tokenizer(recipe, tmp_path)
    log = read_log(tmp_path)
    assert [line["step"] for line in log if "psnr" in line] == [2, 4, 6]
    plain = train_tokenizer(replace(recipe, ema_decay=0.0), tmp_path / "plain")
    averaged = VQModel.from_pretrained(tmp_path / "vq_model")
    assert not torch.equal(averaged.codebook, plain.codebook)


def test_stopped_tokenizer_run_ends_with_the_same_weights(photos, tokenizer, tmp_path, monkeypatch):
    """Stop after the checkpoint at step 3, start again: bit-equal to the run in one go."""
    from codeclade.training.run import Run

    save = Run.save

    def save_then_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(tokenizer_recipe(photos), tmp_path)
    monkeypatch.setattr(Run, "save", save)
    resumed = train_tokenizer(tokenizer_recipe(photos), tmp_path)
    whole = VQModel.from_pretrained(tokenizer / "vq_model")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_dead_codes_move_onto_latents():
    from accelerate import Accelerator

    torch.manual_seed(0)
    vq_model = VQModel((32, 32), 1, 32, codebook_size=16, codebook_dim=4)
    usage = CodeUsage(16, Accelerator())
    before = vq_model.codebook.detach().clone()
    usage.add(torch.tensor([[i for i in range(16) if i not in (3, 7)]]))
    latents = torch.nn.functional.normalize(torch.randn(2, 4, 8, 8), dim=1)
    optimizer = torch.optim.Adam(vq_model.parameters())
    moved = revive_dead_codes(vq_model.codebook, optimizer, usage, latents)
    assert moved.tolist() == [3, 7]
    changed = (vq_model.codebook != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 7]
    nearest = vq_model.quantize.rows()[[3, 7]] @ latents.permute(1, 0, 2, 3).flatten(1)
    assert (nearest.max(1).values > 0.999).all()
    assert not usage.counts.any()


def test_codes_hold_every_image_and_decode_to_it(photos, codes, parts):
    train, held_out = Codes(codes / "train"), Codes(codes / "validation")
    assert train.ids.shape == (57, 3, 64)
    assert held_out.ids.shape == (3, 1, 64)
    assert train.header["class_names"] == ["blue", "red"]
    assert train.header["shards"] == [f"codes-0000{i}.safetensors" for i in range(3)]
    assert (codes / "train" / "preview.png").is_file()
    images = load_images(str(photos), "validation", 16)
    pixels = to_pixels(torch.stack([images[i, None][0] for i in range(3)]))
    assert torch.equal(held_out.ids[:, 0].long(), parts[0].encode(pixels).ids.flatten(1))
    assert torch.equal(held_out.labels, images.labels)


def test_code_views_are_picked_by_seed(codes):
    train = Codes(codes / "train")
    views = {tuple(train[0, seed][0].tolist()) for seed in range(40)}
    assert views == {tuple(view.tolist()) for view in train.ids[0].long()}


def test_codes_of_another_tokenizer_are_refused(codes):
    torch.manual_seed(1)
    other = VQModel((32, 32), 1, 32, codebook_size=16, codebook_dim=4)
    with pytest.raises(ValueError, match="another tokenizer"):
        Codes(codes / "train").check_tokenizer(other)


def test_encode_again_keeps_finished_shards(photos, tokenizer, tmp_path):
    vq_model = VQModel.from_pretrained(tokenizer / "vq_model").eval()
    recipe = EncodeRecipe(data=str(photos), image_size=16, views=1, shard_size=25)
    encode(recipe, vq_model, tmp_path)
    before = Codes(tmp_path / "train").ids
    (tmp_path / "train" / "codes.json").rename(tmp_path / "train" / "codes.partial.json")
    (tmp_path / "train" / "codes-00001.safetensors").unlink()
    stamp = (tmp_path / "train" / "codes-00000.safetensors").stat().st_mtime_ns
    encode(recipe, vq_model, tmp_path)
    assert torch.equal(Codes(tmp_path / "train").ids, before)
    assert (tmp_path / "train" / "codes-00000.safetensors").stat().st_mtime_ns == stamp


def test_codes_of_another_recipe_are_not_overwritten(photos, tokenizer, tmp_path, capsys):
    vq_model = VQModel.from_pretrained(tokenizer / "vq_model").eval()
    recipe = EncodeRecipe(data=str(photos), image_size=16, views=1)
    encode(recipe, vq_model, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert "note:" not in capsys.readouterr().err
    encode(replace(recipe, batch_size=5), vq_model, tmp_path)  # the same codes
    assert "already holds these codes" in capsys.readouterr().err
    for changed, words in (
        (replace(recipe, views=2), r"other codes \(views differ\)"),
        (replace(recipe, image_size=32), r"other codes \(image_size, grid_size differ\)"),
    ):
        with pytest.raises(ValueError, match=words):
            encode(changed, vq_model, tmp_path)
    assert "trained on 16x16 pixels; images of 32x32 give" in capsys.readouterr().err
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match="image_size is 17; this tokenizer needs a multiple of"):
        encode(replace(recipe, image_size=17), vq_model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_no_more_views_than_a_batch_go_through_the_tokenizer_at_once(photos, parts, tmp_path):
    vq_model, passes = parts[0], []
    hook = vq_model.encoder.register_forward_hook(
        lambda module, given, output: passes.append(len(given[0]))
    )
    try:
        for batch_size in (4, 7, 100):
            settings = {"image_size": 16, "views": 5, "batch_size": batch_size}
            encode(EncodeRecipe(data=str(photos), **settings), vq_model, tmp_path / str(batch_size))
            assert max(passes) <= batch_size
            assert sum(passes) == 57 * 5 + 3
            passes.clear()
    finally:
        hook.remove()
    whole = Codes(tmp_path / "100" / "train").ids
    for batch_size in (4, 7):
        assert torch.equal(Codes(tmp_path / str(batch_size) / "train").ids, whole)


def test_mixed_precision_is_of_the_convolutions_alone(photos, parts, tmp_path):
    vq_model, dtypes = parts[0], []
    hook = vq_model.encoder.register_forward_hook(
        lambda module, given, output: dtypes.append(output.dtype)
    )
    recipe = EncodeRecipe(data=str(photos), image_size=16, views=1, mixed_precision="bf16")
    try:
        encode(recipe, vq_model, tmp_path / "half")
    finally:
        hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    encode(replace(recipe, mixed_precision="no"), vq_model, tmp_path / "full")
    half, full = (Codes(tmp_path / name / "train").ids.long() for name in ("half", "full"))
    assert 0.8 < (half == full).float().mean() < 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("views", 0), ("batch_size", -1), ("image_size", 0), ("mixed_precision", "fp8")],
)
def test_encode_refuses_settings_that_cannot_be(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value!r}; it must be"):
        EncodeRecipe(**{"data": "photos", "image_size": 16, setting: value})


def test_missing_codes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"codes\.json is missing"):
        Codes(tmp_path)


def test_baselines_are_entropies(codes):
    train = Codes(codes / "train")
    found = baselines(train, None)
    assert found["uniform_baseline"] == pytest.approx(math.log(16))
    p = torch.bincount(train.ids.flatten().long(), minlength=16) / train.ids.numel()
    expected = -sum(q * math.log(q) for q in p.tolist() if q)
    assert found["unigram_entropy"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("clustered", [True, False])
def test_generator_learns_and_makes_a_pipeline(codes, parts, tmp_path, clustered):
    vq_model, cluster_map = parts
    pipeline = train_generator(
        GENERATOR, codes, vq_model, cluster_map if clustered else None, tmp_path
    )
    log = read_log(tmp_path)
    losses = [line["loss"] for line in log if "loss" in line]
    size = 8 if clustered else 16
    assert losses[0] == pytest.approx(math.log(size), abs=1e-5)
    assert losses[-1] < losses[0]
    mapping = cluster_map.mapping if clustered else None
    held_out = validation_loss(pipeline.transformer, Codes(codes / "validation"), mapping)
    assert held_out == pytest.approx(log[-1]["validation_loss"], abs=1e-5)
    loaded = CodecladePipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.get_label_ids(["red", "blue"]) == [1, 0]
    assert loaded("red").images[0].size == (16, 16)
    record = json.loads((tmp_path / "pipeline" / "training.json").read_text())
    assert record["recipe"] == asdict(GENERATOR) and record["steps"] == GENERATOR.steps
    assert record["logged"]["validation_loss"] == log[-1]["validation_loss"]
    assert "(cpu), torch" in record["machine"] and record["seconds"] >= 0


def test_generator_learns_cluster_then_token(codes, parts, tmp_path):
    recipe = replace(GENERATOR, scheme="cluster_token")
    pipeline = train_generator(recipe, codes, *parts, tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert losses[0] == pytest.approx(math.log(8) + math.log(2), abs=1e-5)  # 8 clusters of 2
    assert losses[-1] < losses[0]
    assert torch.equal(pipeline.transformer.token_embedding.cluster_of, parts[1].mapping)


def test_cluster_loss_is_added_to_the_token_loss(codes, parts, tmp_path):
    recipe = replace(GENERATOR, scheme="token", cluster_loss_weight=0.5)
    train_generator(recipe, codes, *parts, tmp_path)
    first = next(line["loss"] for line in read_log(tmp_path) if "loss" in line)
    assert first == pytest.approx(math.log(16) + 0.5 * math.log(8), abs=1e-5)


def test_generator_learns_pairs_of_a_two_codebook_tokenizer(photos, tmp_path):
    torch.manual_seed(0)
    vq_model = VQModel((32, 32), 1, 32, 16, 4, detail_codebook_size=6).eval()
    encode(EncodeRecipe(data=str(photos), image_size=16, views=1), vq_model, tmp_path / "codes")
    assert Codes(tmp_path / "codes" / "train").ids.shape == (57, 1, 64, 2)
    recipe = replace(GENERATOR, head_layers=2, head_window=1, head_mlp=False)
    cluster_map = ClusterMap.from_labels(torch.arange(16) % 4, vq_model.codebook)
    parts = tmp_path / "codes", vq_model, cluster_map
    with pytest.raises(ValueError, match="a loss of single ids, not of pairs"):
        train_generator(replace(recipe, cluster_loss_weight=0.5), *parts, tmp_path / "refused")
    pipeline = train_generator(recipe, *parts, tmp_path / "run")
    assert pipeline.transformer.config.scheme == "semantic_detail"
    assert torch.equal(pipeline.cluster_map.mapping, cluster_map.mapping)  # the app's alone
    head = pipeline.transformer.head
    assert [name for name, _ in head.semantic.named_parameters()] == ["2.weight"]
    assert head.semantic[2].in_features == pipeline.transformer.config.hidden_size
    assert len(head.blocks) == 2
    assert head.combine[0].in_features == 4 * (32 // 4)  # cells of the window times their width
    log = read_log(tmp_path / "run")
    assert log[0]["uniform_baseline"] == pytest.approx(math.log(16) + math.log(6), abs=1e-5)
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[0] == pytest.approx(log[0]["uniform_baseline"], abs=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("scheme", "clustered", "words"),
    [
        ("cluster", False, "needs a cluster map"),
        ("semantic_detail", False, "no detail codes"),
    ],
)
def test_scheme_that_does_not_fit_is_refused(codes, parts, tmp_path, scheme, clustered, words):
    recipe = replace(GENERATOR, scheme=scheme)
    with pytest.raises(ValueError, match=words):
        train_generator(recipe, codes, parts[0], parts[1] if clustered else None, tmp_path)


def test_a_generator_of_ids_may_carry_a_cluster_map(codes, parts, tmp_path):
    vq_model, cluster_map = parts
    recipe = replace(GENERATOR, scheme="token", embedding_prior="both")
    bare = train_generator(recipe, codes, vq_model, None, tmp_path / "bare")
    pipeline = train_generator(recipe, codes, vq_model, cluster_map, tmp_path / "run")
    assert bare.cluster_map is None
    assert torch.equal(pipeline.cluster_map.mapping, cluster_map.mapping)
    assert pipeline.transformer.config.vocab_size == vq_model.codebook_size
    ours, theirs = pipeline.transformer.state_dict(), bare.transformer.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_stopped_generator_run_ends_with_the_same_weights(codes, parts, tmp_path, monkeypatch):
    from codeclade.training.run import Run

    whole = train_generator(GENERATOR, codes, *parts, tmp_path / "whole")
    save = Run.save

    def save_then_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_generator(GENERATOR, codes, *parts, tmp_path / "stopped")
    monkeypatch.setattr(Run, "save", save)
    resumed = train_generator(GENERATOR, codes, *parts, tmp_path / "stopped")
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, resumed.transformer.state_dict()[name]), name


def test_map_of_another_tokenizer_is_refused_before_training(codes, parts, tmp_path):
    torch.manual_seed(1)
    other = ClusterMap.from_labels(torch.arange(16) // 2, torch.randn(16, 4))
    with pytest.raises(ValueError, match="another codebook"):
        train_generator(GENERATOR, codes, parts[0], other, tmp_path)
    assert not (tmp_path / "log.jsonl").exists()
