"""Inception against torch-fidelity's numbers on seeded weights, and what it may be called."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from codeclade.metrics import inception as module
from codeclade.metrics.inception import Inception, resize_like_tensorflow
from golden_weights import inception_case


@pytest.fixture(scope="module")
def case():
    """Seeded weights as tests/golden/README.md says, and the reference."""
    return inception_case()


@pytest.fixture(scope="module")
def file(case, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(case[0], path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return Inception.from_file(file)


def test_outputs_equal_torch_fidelity_on_seeded_weights(network, case):
    _, reference = case
    output = network(reference["images"].float() / 127.5 - 1)
    torch.testing.assert_close(output.features, reference["features"], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.logits, reference["logits"], rtol=0, atol=1e-4)
    assert output.spatial.shape == (2, 2023)
    torch.testing.assert_close(output.spatial[:, ::7], reference["spatial"], rtol=0, atol=1e-4)
    # The tolerance would tell the two images apart.
    assert (output.features[0] - output.features[1]).abs().mean() > 0.01


def test_resize_equals_the_reference_bit_for_bit(case):
    _, reference = case
    resized = resize_like_tensorflow(reference["images"].float(), 299)
    assert torch.equal(resized[:, :, ::23, ::23], reference["resized"])
    images = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_like_tensorflow(images, 299), images)


def test_pixels_are_rounded_to_8_bit_first(network):
    images = torch.tensor([0.0, 1.0, 127.0, 255.0]).repeat(3, 4, 1)[None]
    exact = network.preprocess(images / 127.5 - 1)
    off = network.preprocess((images + torch.tensor([-9.0, 0.3, -0.3, 9.0])) / 127.5 - 1)
    assert torch.equal(exact, off)
    assert exact.min() == -1 and exact.max() == pytest.approx(127 / 128)


def test_only_the_published_file_is_called_fid(network, file, monkeypatch):
    assert not network.is_published
    assert network.distance_name == "FD-Inception with unpublished weights"
    assert len(network.fingerprint) == 64
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "PUBLISHED_SHA256", sha256)
    published = Inception.from_file(file)
    assert published.is_published and published.distance_name == "FID"
    assert published.fingerprint == network.fingerprint
    with torch.no_grad():
        published.fc.bias[0] += 1
    assert published.fingerprint != network.fingerprint


def test_a_pytorch_file_with_counters_loads_and_strange_ones_do_not(case, network, tmp_path):
    weights, _ = case
    counted = {**weights, "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(0)}
    torch.save(counted, tmp_path / "counted.pth")
    assert Inception.from_file(tmp_path / "counted.pth").fingerprint == network.fingerprint
    lacking = {k: v for k, v in weights.items() if k != "fc.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(ValueError, match=r"has no tensor fc\.bias"):
        Inception.from_file(tmp_path / "lacking.pth")
    torch.save({**weights, "fc.bias": torch.zeros(1000)}, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"fc\.bias must be \(1008,\), got \(1000,\)"):
        Inception.from_file(tmp_path / "narrow.pth")
    torch.save({**weights, "AuxLogits": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match="a tensor AuxLogits that the network does not know"):
        Inception.from_file(tmp_path / "more.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name in ("module", "text"):
        with pytest.raises(ValueError, match=f"{name}.pth is not a PyTorch file of tensors alone"):
            Inception.from_file(tmp_path / f"{name}.pth")
    torch.save({"state_dict": weights}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        Inception.from_file(tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="there is no weights file"):
        Inception.from_file(tmp_path / "none.pth")


def test_the_network_stays_frozen(network):
    network.train()
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
