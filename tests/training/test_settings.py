"""Settings that no run of the other tests turns on reach what they are for."""

import io
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from torch import nn

from builders import build_t5, build_tokenizer, build_vq
from codeclade.data.captioned import CaptionedCodes
from codeclade.data.codes import Codes
from codeclade.training.encode import EncodeRecipe, encode
from codeclade.training.generator import GeneratorTraining, train_generator
from codeclade.training.optimization import build_optimizer
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from codeclade.training.text_features import TextRecipe, encode_text
from codeclade.training.tokenizer import train_tokenizer
from codeclade.training.tokenizer_losses import ImageLosses
from codeclade.training.tokenizer_recipe import TokenizerRecipe
from generator_runs import RECIPE, write_codes
from shared_runs import write_features

PLAIN = {"mixed_precision": "no", "tracker": "none"}
TINY = TokenizerRecipe(
    data="photos", image_size=16, block_out_channels=[32, 32], layers_per_block=1,
    latent_channels=32, codebook_size=16, codebook_dim=4, perceptual="none", steps=1, batch_size=2,
    **PLAIN,
)  # fmt: skip


def test_terms_of_the_codebook_have_the_weights_of_the_recipe():
    losses = ImageLosses(replace(TINY, codebook_weight=3.0, commitment_weight=0.5))
    terms = {"codebook": torch.tensor(1.0), "commitment": torch.tensor(10.0)}
    assert losses.weighted(terms) == 3.0 + 5.0


def test_decay_is_of_matrices_alone():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, RunRecipe(weight_decay=0.5, learning_rate=0.1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.zeros(1, 3)).sum().mul(0).backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), before[1])


def test_gradients_are_clipped(tmp_path):
    """All together to the norm of the recipe; what is logged is the norm before."""
    recipe = RunRecipe(steps=1, batch_size=4, gradient_clip=0.5, warmup=0, **PLAIN)
    run = Run(recipe, tmp_path)
    model = nn.Linear(3, 1)
    run.start(model, torch.optim.SGD(model.parameters(), lr=1.0))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    means = run.optimize([torch.ones(4, 3)], lambda x: {"loss": 100 * run.model(x).mean()})
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert means["gradient_norm"] == pytest.approx(200.0)
    assert (after - before).norm() == pytest.approx(0.5, abs=1e-5)


def test_each_dropout_of_a_generator_may_be_its_own(tmp_path):
    vq_model = build_vq()
    own = {"token_dropout": 0.2, "residual_dropout": 0.0, "feed_forward_dropout": 0.3}
    codes = write_codes(tmp_path, vq_model)
    config = GeneratorTraining(replace(RECIPE, **own), codes, vq_model, None).config
    assert {name: getattr(config, name) for name in own} == own
    half = replace(RECIPE, **own | {"dropout": 0.4, "residual_dropout": None})
    assert GeneratorTraining(half, codes, vq_model, None).config.residual_dropout == 0.4


def test_sampling_settings_are_the_pipelines_defaults(tmp_path):
    vq_model = build_vq()
    chosen = {"guidance_scale": 1.5, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    recipe = replace(RECIPE, steps=1, guidance_schedule="linear", **chosen)
    pipe = train_generator(recipe, write_codes(tmp_path / "c", vq_model), vq_model, None, tmp_path)
    assert {name: pipe.config[name] for name in chosen} == chosen
    assert pipe.config["guidance_schedule"] == "linear"


def photographs(folder) -> str:
    """Parquet with splits and columns of other names, and one training image that is damaged."""
    folder.mkdir()
    kinds = Features({"photo": Image(), "breed": Value("string")})
    for split, count in (("train", 6), ("test", 3)):
        images = []
        for index in range(count):
            file = io.BytesIO()
            Picture.new("RGB", (16, 16), (40 * index, 90, 200)).save(file, "png")
            damaged = split == "train" and index == 4
            images.append({"bytes": b"nothing" if damaged else file.getvalue(), "path": None})
        rows = {"photo": images, "breed": ["pug" if i % 2 else "cat" for i in range(count)]}
        Dataset.from_dict(rows, kinds).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_splits_columns_and_damaged_images_reach_both_commands(tmp_path, capsys):
    named = {
        "data": photographs(tmp_path / "photos"), "split": "train", "validation_split": "test",
        "image_column": "photo", "label_column": "breed", "damaged_images": "skip",
    }  # fmt: skip
    vq_model = train_tokenizer(replace(TINY, **named), tmp_path / "run")
    table = capsys.readouterr().err
    assert "5 images, 2 classes; 3 for validation" in table and "skipped: " in table
    encode(EncodeRecipe(image_size=16, views=1, **named), vq_model, tmp_path / "codes")
    assert [len(Codes(tmp_path / "codes" / s)) for s in ("train", "validation")] == [5, 3]
    with pytest.raises(ValueError, match="image 4"):
        encode(
            EncodeRecipe(image_size=16, **named | {"damaged_images": "refuse"}),
            vq_model,
            tmp_path / "other",
        )


def test_features_of_captions_may_be_made_in_bfloat16(tmp_path):
    build_t5().save_pretrained(tmp_path / "t5")
    build_tokenizer().save_pretrained(tmp_path / "t5")
    rows = {}
    for precision in ("no", "bf16"):
        codes = write_codes(tmp_path / precision, build_vq())
        write_features(codes, {"train": 32, "validation": 4})
        recipe = TextRecipe(
            text_encoder=str(tmp_path / "t5"), prefix_length=4, mixed_precision=precision
        )
        encode_text(recipe, codes)
        rows[precision] = CaptionedCodes(codes / "train").caption(3)[0].float()
    gap = (rows["bf16"] - rows["no"]).abs().max() / rows["no"].abs().max()
    assert 0 < gap < 0.05


def test_messages_of_several_processes_come_once(monkeypatch, capsys):
    from codeclade.data.messages import say

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"process {rank}")
    assert capsys.readouterr().out == "process 0\n"
