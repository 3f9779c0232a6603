"""Measures of partitions and images against naive references, and the report they end up in."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import cdist, pdist

from codeclade.data.images import photographs
from codeclade.evaluation import comparison, replacement
from codeclade.evaluation.cluster_report import write_report
from codeclade.evaluation.page import Page, Table
from codeclade.metrics import clusters
from codeclade.metrics.image_quality import gaussian_window, psnr, ssim


@pytest.fixture
def rows():
    return np.random.default_rng(3).normal(size=(60, 4))


@pytest.fixture
def labels():
    return np.unique(np.random.default_rng(4).integers(0, 9, 60), return_inverse=True)[1]


def pixels(seed: int, size: int = 16, count: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=random) * 2.4 - 1.2  # some out of range


# --- images


def test_psnr_is_its_formula():
    a, b = pixels(0), pixels(1)
    x, y = a.clamp(-1, 1).double().numpy(), b.clamp(-1, 1).double().numpy()
    wanted = [10 * np.log10(4 / np.mean((x[i] - y[i]) ** 2)) for i in range(2)]
    np.testing.assert_allclose(psnr(a, b).numpy(), wanted, rtol=1e-5)
    assert psnr(a, a).isinf().all()


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004), window by window, of one plane in [0, 1]."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    return float(np.mean(values))


def test_ssim_is_the_naive_one():
    a, b = pixels(0), (pixels(0) + 0.3 * pixels(1))
    x, y = ((image.clamp(-1, 1).double().numpy() + 1) / 2 for image in (a, b))
    wanted = [np.mean([naive_ssim(x[i, c], y[i, c]) for c in range(3)]) for i in range(2)]
    np.testing.assert_allclose(ssim(a, b).numpy(), wanted, rtol=1e-9)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    assert gaussian_window().sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(pixels(0, size=8), pixels(1, size=8))


# --- partitions


def test_sizes():
    spread = clusters.size_spread(np.array([0, 0, 0, 1, 2, 2]))
    assert spread == {"smallest": 1, "median": 2.0, "largest": 3, "alone": 1}


def test_in_cluster_distance_is_the_mean_over_codes_with_company(rows, labels):
    distances, means = cdist(rows, rows), []
    for i, label in enumerate(labels):
        others = np.flatnonzero((labels == label) & (np.arange(60) != i))
        if len(others):
            means.append(distances[i, others].mean())
    assert clusters.in_cluster_distance(rows, labels) == pytest.approx(np.mean(means), rel=1e-12)


def test_in_cluster_distance_of_large_clusters_is_sampled_well():
    rows = np.random.default_rng(0).normal(size=(600, 3))
    labels = np.zeros(600, dtype=np.int64)
    exact = pdist(rows).mean()
    assert clusters.in_cluster_distance(rows, labels) == pytest.approx(exact, rel=0.01)
    assert np.isnan(clusters.in_cluster_distance(rows, np.arange(600)))


def test_random_partition_keeps_the_sizes(labels):
    shuffled = clusters.random_like(labels, seed=1)
    assert (np.bincount(shuffled) == np.bincount(labels)).all() and (shuffled != labels).any()


def test_cophenetic_correlation_is_scipys(rows):
    tree = linkage(rows, "average")
    children, heights = tree[:, :2].astype(int), tree[:, 2]
    wanted = cophenet(tree, pdist(rows))[0]
    got = clusters.cophenetic_correlation(rows, children, heights)
    assert got == pytest.approx(wanted, rel=1e-12)
    sampled = clusters.cophenetic_correlation(rows, children, heights, pairs=1000)
    assert sampled != got and sampled == pytest.approx(wanted, abs=0.05)


def test_entropy_of_clusters():
    counts = np.array([4, 0, 2, 2])
    assert clusters.cluster_entropy(counts, np.arange(4)) == pytest.approx(1.5)
    assert clusters.cluster_entropy(counts, np.array([0, 0, 1, 1])) == pytest.approx(1.0)
    assert clusters.cluster_entropy(counts, np.zeros(4, dtype=int)) == 0


# --- replacement


def test_replacement_stays_inside_the_cluster(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook)
    ids = torch.arange(32).repeat(40).view(20, 8, 8)
    drawn = replacement.replace_codes(ids, cluster_map, seed=5)
    assert torch.equal(cluster_map.to_clusters(drawn), cluster_map.to_clusters(ids))
    assert torch.equal(drawn, replacement.replace_codes(ids, cluster_map, seed=5))
    assert not torch.equal(drawn, ids)
    for code in range(32):  # 40 draws of one of at most a few members
        members = cluster_map.members(int(cluster_map.to_clusters(torch.tensor(code))))
        assert set(drawn[ids == code].tolist()) == set(members.tolist())


def test_replacement_in_one_of_two_codebooks(tiny_vq, tiny_map):
    cluster_map = tiny_map(tiny_vq().codebook)
    ids = torch.randint(0, 32, (3, 4, 4, 2), generator=torch.Generator().manual_seed(0))
    drawn = replacement.replace_codes(ids, cluster_map, seed=1, table=1)
    assert torch.equal(drawn[..., 0], ids[..., 0]) and not torch.equal(drawn[..., 1], ids[..., 1])


def test_photographs_are_spread_cropped_and_scaled(tmp_path):
    (tmp_path / "a").mkdir()
    for value in range(6):
        image = Image.new("RGB", (40, 20), (value * 51,) * 3)
        image.save(tmp_path / "a" / f"{value}.png")
    found = photographs(tmp_path, 3, 16)
    assert found.shape == (3, 3, 16, 16)
    means = found.mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0, 102, 204]) / 127.5 - 1)
    assert len(photographs(tmp_path, 100, 16)) == 6
    with pytest.raises(ValueError, match="there is no folder"):
        photographs(tmp_path / "gone", 3, 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        photographs(tmp_path / "empty", 3, 16)


# --- the whole comparison and its page


@pytest.fixture
def compared(tiny_vq, tiny_map, monkeypatch):
    monkeypatch.setattr(comparison, "feature_network", lambda: None)  # as without the extra
    vq_model = tiny_vq()
    codebook = vq_model.codebook.detach()
    cluster_map = tiny_map(codebook, 16)
    settings = comparison.Settings("tiny", "masc", counts=[8, 5], images="photos")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = codebook.double().numpy()
    return comparison.compare(settings, cluster_map, codebook, rows, vq_model, images), vq_model


def test_comparison_measures_every_method_at_every_k(compared):
    result, _ = compared
    methods = {k: [part.method for part in result.at(k)] for k in (16, 8, 5)}
    assert methods == {
        16: ["masc", "kmeans", "balanced", "random"],
        8: ["masc", "kmeans", "balanced", "random"],
        5: ["masc", "kmeans", "random"],  # 5 does not divide 32
    }
    assert any("K = 5" in note for note in result.notes)
    assert any("codeclade[eval]" in note for note in result.notes)
    masc, random = (result.at(8)[i].numbers for i in (0, -1))
    assert masc["against_random"] < 0.8 < random["against_random"]
    assert masc["reconstruction_psnr"] > random["reconstruction_psnr"]
    assert 0 < masc["entropy"] <= 3
    for part in result.partitions:
        assert part.clusters == len(np.unique(part.labels))


def test_replacement_numbers_are_those_of_the_images(compared):
    result, _ = compared
    for part in result.at(16):  # all four images are on the sheet
        wanted = psnr(part.images, result.photographs).mean().item()
        assert part.numbers["photograph_psnr"] == pytest.approx(wanted)
        wanted = ssim(part.images, result.reconstructions).mean().item()
        assert part.numbers["reconstruction_ssim"] == pytest.approx(wanted)


def test_html_report_is_one_file_that_loads_nothing(compared, tmp_path):
    result, vq_model = compared
    write_report(result, tmp_path / "report.html", vq_model)
    text = (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"(src|href)\s*=\s*['\"](?!data:)", text) and "http" not in text
    pictures = re.findall(r"data:image/png;base64,([^']+)'", text)
    assert len(pictures) == 4  # tree, sizes, curves, sheet
    for picture in pictures:
        Image.open(BytesIO(base64.b64decode(picture))).verify()
    cell = f"<td>{result.at(8)[0].numbers['photograph_psnr']:.2f}</td>"
    assert cell in text
    for protocol in ("4 photographs of photos", "seed 0", "16x16", "does not divide"):
        assert protocol in text


def test_png_report(compared, tmp_path):
    result, vq_model = compared
    write_report(result, tmp_path / "report.png", vq_model)
    with Image.open(tmp_path / "report.png") as page:
        assert page.width == 2200 and page.height > 3000


def test_codebook_alone_gives_a_shorter_page(tiny_vq, tiny_map, tmp_path):
    codebook = tiny_vq().codebook.detach()
    rows = codebook.double().numpy()
    settings = comparison.Settings("rows.npy", "masc")
    result = comparison.compare(settings, tiny_map(codebook, 16), codebook, rows)
    write_report(result, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "replacement test" not in text.lower() and "entropy" not in text.lower()
    assert sorted({part.clusters for part in result.partitions}) == [4, 8, 16]


def test_page_escapes_and_checks_its_ending(tmp_path):
    page = Page("a < b", "x & y", [("n", "1")])
    page.add("table", "note", table=Table(["K", "method"], [["1", "<masc>"]]))
    assert "a &lt; b" in page.html() and "&lt;masc&gt;" in page.html()
    with pytest.raises(ValueError, match=r"must end in \.html or \.png"):
        page.write(tmp_path / "report.pdf")
