"""What makes a step fast computes what the plain way does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeclade.components.blocks import Output
from codeclade.training import cpu_linear
from codeclade.training.averages import AveragedWeights
from codeclade.training.token_loss import CHUNK, token_loss


def filled(width: int, vocabulary: int) -> Output:
    """A last layer with drawn weights; a new one has zeros."""
    layer = Output(width, vocabulary)
    nn.init.normal_(layer.weight, std=0.3)
    return layer


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss * 3, of)


@pytest.mark.parametrize("vocabulary", [7, 3000])
def test_loss_in_chunks_is_the_cross_entropy(vocabulary, monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 5 * vocabulary)  # several chunks, the last one shorter
    torch.manual_seed(0)
    layer = filled(16, vocabulary)
    hidden = torch.randn(3, 4, 16, requires_grad=True)
    tokens = torch.randint(vocabulary, (3, 4))
    tokens[0] = layer(hidden).argmax(-1)[0]  # some are right

    logits = layer(hidden)
    plain = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss, accuracy = token_loss(layer, hidden, tokens)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    assert accuracy.item() == pytest.approx((logits.argmax(-1) == tokens).float().mean().item())
    for one, other in zip(
        gradients(loss, hidden, layer.weight), gradients(plain, hidden, layer.weight), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_loss_in_chunks_bears_large_logits_and_right_tokens_without_probability():
    layer = filled(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[200.0, 0.0], [0.0, 0.0], [-200.0, 0.0]]))
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss, accuracy = token_loss(layer, hidden, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx(200.0) and accuracy.item() == 0.5
    assert all(found.isfinite().all() for found in gradients(loss, hidden, layer.weight))


def test_loss_in_chunks_under_autocast():
    torch.manual_seed(0)
    layer, tokens = filled(32, 500), torch.randint(500, (2, 9))
    hidden = torch.randn(2, 9, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = token_loss(layer, hidden, tokens)
        plain = F.cross_entropy(layer(hidden).float().flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        gradients(loss, hidden, layer.weight), gradients(plain, hidden, layer.weight), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_fast_linears_compute_the_same(bias):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("PyTorch without oneDNN")
    torch.manual_seed(0)
    layer, rows = nn.Linear(24, 40, bias=bias), torch.randn(2, 5, 24, requires_grad=True)
    found = [
        (out := function(layer, rows),
         *torch.autograd.grad(out.square().sum(), [rows, *layer.parameters()]))
        for function in (lambda one, x: one(x), cpu_linear.fast_linear)
    ]  # fmt: skip
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    # Frozen weights get no gradient, and half precision goes the usual way.
    layer.requires_grad_(False)
    (of_rows,) = torch.autograd.grad(cpu_linear.fast_linear(layer, rows).sum(), [rows])
    torch.testing.assert_close(of_rows, layer.weight.sum(0).expand_as(rows), rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu_linear.fast_linear(layer, rows).dtype == torch.bfloat16


def test_fast_linears_come_and_go_with_a_run(monkeypatch):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("PyTorch without oneDNN")
    monkeypatch.setattr(cpu_linear, "is_faster", lambda: True)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), filled(8, 5))
    names, rows = list(model.state_dict()), torch.randn(3, 4)
    before = model(rows)
    cpu_linear.use_fast_linears(model)
    assert "forward" in vars(model[0]) and "forward" in vars(model[2])
    torch.testing.assert_close(model(rows), before, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    cpu_linear.use_plain_linears(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(rows), before)


def test_averaged_weights_are_those_of_the_parent_class():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4))]
    parameters[1].requires_grad_(False)
    ours = AveragedWeights(parameters, decay=0.9)
    expected = AveragedWeights(parameters, decay=0.9)
    for _ in range(4):
        with torch.no_grad():
            for one in parameters:
                one.add_(torch.randn_like(one))
        ours.step(parameters)
        super(AveragedWeights, expected).step(parameters)
    assert ours.optimization_step == expected.optimization_step == 4
    for one, other in zip(ours.shadow_params, expected.shadow_params, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
