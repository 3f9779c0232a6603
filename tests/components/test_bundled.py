"""The pipeline that ships with the package: loads offline, is small, and knows its classes."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from codeclade import CodecladePipeline, bundled

VERSIONS = ("", "ids", "0.1")


@pytest.fixture(scope="module", params=VERSIONS)
def pipe(request):
    pipe = CodecladePipeline.from_pretrained(bundled(request.param))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_are_under_30_megabytes(version):
    files = list(Path(bundled(version)).rglob("*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= 30e6


def test_a_version_without_a_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"version is '0\.3'; it must be"):
        bundled("0.3")


@pytest.mark.parametrize(
    ("version", "scheme", "codes"),
    [("", "semantic_detail", 4096), ("ids", "token", 4096), ("0.1", "cluster", 1024)],
)
def test_every_version_has_its_scheme_and_512_clusters(version, scheme, codes):
    pipe = CodecladePipeline.from_pretrained(bundled(version))
    assert (pipe.transformer.config.scheme, pipe.vq_model.codebook_size) == (scheme, codes)
    assert (pipe.cluster_map.config.method, pipe.cluster_map.num_clusters) == ("masc", 512)


def test_map_is_average_linkage_of_its_codebook(pipe):
    from scipy.cluster.hierarchy import fcluster, linkage

    codebook = pipe.vq_model.codebook.detach().double().numpy()
    tree = linkage(codebook, "average")
    k = pipe.cluster_map.num_clusters
    expected = fcluster(tree, k, "maxclust")
    pairs = set(zip(expected.tolist(), pipe.cluster_map.mapping.tolist(), strict=True))
    # Cut from the float32 codebook, shipped in bfloat16: nearly all pairs must agree.
    assert len(pairs) <= 1.1 * k


def test_guided_images_have_the_colors_of_their_class(pipe):
    """Means over 16 images: oranges are warmer than alps, which have a bluer, brighter top."""
    generator = torch.Generator().manual_seed(0)
    images = pipe(
        ["orange", "alp"], num_images_per_prompt=16, generator=generator, output_type="np"
    ).images
    oranges, alps = images[:16], images[16:]
    warmth = [np.mean(part[..., 0] - part[..., 2]) for part in (oranges, alps)]
    assert warmth[0] > warmth[1] + 0.15
    assert images.std(axis=(1, 2)).mean() > 0.1  # pictures, not flat color


def test_reconstruction_is_close_to_a_photograph(pipe):
    """A decoded sample is a fixed point of nothing, but tokenizing it again must stay close."""
    pixels = pipe("lakeside", num_images_per_prompt=4, output_type="pt").images * 2 - 1
    again = pipe.vq_model(pixels)
    error = (again - pixels).square().mean()
    assert error < 0.3 * pixels.var()


@pytest.mark.parametrize("version", VERSIONS)
def test_readme_card_is_there(version):
    text = (Path(bundled(version)) / "README.md").read_text()
    assert text.startswith("---\n")
    assert "Tiny ImageNet" in text


@pytest.mark.parametrize("version", VERSIONS)
def test_numbers_of_the_card_are_those_measured(version):
    """The newest card has the numbers of both versions, by both judges."""
    text = (Path(bundled()) / "README.md").read_text()
    rows = json.loads((Path(bundled(version)) / "evaluation.json").read_text())
    measured = {row["metric"]: row for row in rows}
    shown = {"PSNR of reconstructions": ".2f", "SSIM of reconstructions": ".3f"}
    for judge in ("EfficientNet-Lite0", "EfficientNet-Lite2"):
        shown |= {f"{name}-{judge}": ".1f" for name in ("Class accuracy", "FD", "rFD")}
        shown |= {f"{name}-{judge}": ".3f" for name in ("Precision", "Coverage")}
        shown |= {f"{name}-{judge}": ".4f" for name in ("KID", "Recall")}
    for name, digits in shown.items():
        number = format(measured[name]["value"], digits)
        assert f" {number} " in text.replace("*", " "), (name, number)


def test_a_load_warns_of_nothing(capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CodecladePipeline.from_pretrained(bundled())
    assert not caplog.records and not "".join(capfd.readouterr())


@pytest.mark.slow  # a process that imports everything
def test_a_load_prints_no_warning_and_no_bar_inside_a_bar():
    code = (
        "import warnings; warnings.simplefilter('default')\n"
        "from codeclade import CodecladePipeline, bundled\n"
        "from diffusers.utils import logging; logging.disable_progress_bar()\n"
        "CodecladePipeline.from_pretrained(bundled())"
    )
    bars = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bars)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
