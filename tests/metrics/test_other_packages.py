"""Metrics beside other people's packages, run live; the golden files hold what they gave once.

    pip install torchvision torch-fidelity pytorch-fid prdc lpips scikit-image
    python -m pytest -m slow tests/metrics/test_other_packages.py

A package that is not installed skips its tests.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codeclade.metrics import image_quality
from codeclade.metrics.distances import kernel_distance
from codeclade.metrics.inception import Inception
from codeclade.metrics.inception_score import inception_score
from codeclade.metrics.lpips_weights import find_lpips_weights, load_lpips
from codeclade.metrics.precision_recall import precision_recall
from codeclade.metrics.statistics import FeatureStatistics, gaussian_distance
from golden_weights import inception_case

pytestmark = pytest.mark.slow


def eight_bit(*shape: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=draws).float()


def features(count: int, seed: int, size: int = 48) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9)) / size**0.5
    return torch.randn(count, size, generator=draws) @ mix + 0.05 * seed


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Seeded weights of Inception: our file, and one with the counters that PyTorch saves."""
    found, _ = inception_case()
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in found
        if name.endswith("running_mean")
    }
    folder = tmp_path_factory.mktemp("inception")
    save_file(found, folder / "ours.safetensors")
    torch.save(found | counters, folder / "theirs.pth")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 3, 64, 80), (1, 3, 400, 400), (1, 3, 299, 299)])
def test_inception_is_torch_fidelitys(weights, shape):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights / "theirs.pth"),
    )
    images = eight_bit(*shape)
    wanted, logits = network(images.to(torch.uint8))
    ours = Inception.from_file(weights / "ours.safetensors")(images / 127.5 - 1)
    torch.testing.assert_close(ours.features, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_inception_is_pytorch_fids(weights, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    found = torch.load(weights / "theirs.pth", weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: found)
    network = theirs.InceptionV3([3], resize_input=False).eval()
    images = eight_bit(2, 3, 299, 299)
    wanted = network(images / 256)[0][:, :, 0, 0]  # its own scaling gives (x - 128) / 128
    ours = Inception.from_file(weights / "ours.safetensors")(images / 127.5 - 1)
    torch.testing.assert_close(ours.features, wanted, rtol=0, atol=1e-4)


def test_distances_are_torch_fidelitys():
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = features(300, 0), features(400, 1)
    sides = [{"mu": x.double().numpy().mean(0), "sigma": np.cov(x.double().numpy(), rowvar=False)}
             for x in (a, b)]  # fmt: skip
    wanted = fid.fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    ours = []
    for x in (a, b):
        statistics = FeatureStatistics(x.shape[1])
        statistics.update(x)
        ours.append(statistics.gaussian())
    assert gaussian_distance(*ours) == pytest.approx(wanted, rel=1e-6)
    # One subset of all images is the unbiased estimate itself.
    wanted = kid.kid_features_to_metric(
        a, b[:300], kid_subsets=1, kid_subset_size=300, verbose=False
    )
    assert kernel_distance(a, b[:300]) == pytest.approx(
        wanted["kernel_inception_distance_mean"], rel=1e-4
    )


def test_scores_are_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * features(200, 2)
    wanted = theirs.isc_features_to_metric(logits, splits=10, shuffle=False, rng_seed=0)
    assert inception_score(logits, 10) == pytest.approx(tuple(wanted.values()), rel=1e-5)


def test_precision_and_recall_are_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    reference, samples = features(300, 0), features(250, 1)
    wanted = theirs.prc_features_to_metric(
        samples.double(), reference.double(), prc_neighborhood=3, verbose=False
    )
    ours = precision_recall(reference, samples)
    assert 0 < ours["precision"] < 1 and 0 < ours["recall"] < 1
    for name in ("precision", "recall"):
        assert ours[name] == pytest.approx(wanted[name], abs=1e-6)


@pytest.mark.parametrize("neighbors", [3, 5])
def test_neighbors_are_prdcs(neighbors):
    prdc = pytest.importorskip("prdc")
    reference, samples = features(300, 0), features(250, 1)
    wanted = prdc.compute_prdc(reference.double().numpy(), samples.double().numpy(), neighbors)
    assert precision_recall(reference, samples, neighbors) == pytest.approx(wanted, abs=1e-9)


def test_image_quality_is_scikit_images():
    theirs = pytest.importorskip("skimage.metrics")
    images, reference = eight_bit(2, 3, 24, 31), eight_bit(2, 3, 24, 31, seed=1)
    reference = (0.7 * images + 0.3 * reference).round()
    pairs = [
        [x[i].permute(1, 2, 0).to(torch.uint8).numpy() for x in (reference, images)]
        for i in range(2)
    ]
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = {
        "psnr": [theirs.peak_signal_noise_ratio(*pair) for pair in pairs],
        "ssim": [theirs.structural_similarity(*p, channel_axis=2, **gaussian) for p in pairs],
        "llamagen_ssim": [
            theirs.structural_similarity(*(x / 255 for x in p), channel_axis=2, data_range=2.0)
            for p in pairs
        ],
    }
    for name, values in wanted.items():
        ours = getattr(image_quality, name)(images / 127.5 - 1, reference / 127.5 - 1)
        assert ours.tolist() == pytest.approx(values, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_distances_of_images_are_those_of_lpips(network):
    """With published weights: the heads are in both, the backbone of ours serves both."""
    theirs = pytest.importorskip("lpips")
    if (path := find_lpips_weights(network)) is None:
        pytest.skip("the weights of LPIPS are not here; --fetch-lpips downloads them")
    ours = load_lpips(network, path)
    other = theirs.LPIPS(net=network, pretrained=True, pnet_rand=True, verbose=False).eval()
    layers = [x for x in other.net.modules() if isinstance(x, torch.nn.Conv2d)]
    for mine, layer in zip(ours.backbone.conv, layers, strict=True):
        layer.load_state_dict(mine.state_dict())
    a, b = (eight_bit(2, 3, 70, 64, seed=seed) / 127.5 - 1 for seed in (0, 1))
    for near in (b, 0.9 * a + 0.1 * b):
        torch.testing.assert_close(ours(a, near), other(a, near).flatten(), rtol=0, atol=1e-4)
