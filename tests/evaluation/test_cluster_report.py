"""The replacement test, comparisons of methods and the report they end up in."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from codeclade.components.cluster_map import ClusterMap
from codeclade.data.extras import install_command
from codeclade.data.images import photographs
from codeclade.evaluation import comparison, replacement
from codeclade.evaluation.cluster_report import write_report
from codeclade.evaluation.figures import sizes_figure
from codeclade.evaluation.page import Page, Table
from codeclade.metrics.image_quality import psnr, ssim


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
    assert any(install_command("eval") in note for note in result.notes)
    masc, random = (result.at(8)[i].numbers for i in (0, -1))
    assert masc["against_random"] < 0.8 < random["against_random"]
    assert masc["reconstruction_psnr"] > random["reconstruction_psnr"]
    assert 0 < masc["entropy"] <= 3
    for part in result.partitions:
        assert part.clusters == len(np.unique(part.labels))


def test_distances_are_over_all_codes_and_of_unit_rows_too(compared):
    result, _ = compared
    lengths = np.linalg.norm(result.rows, axis=1, keepdims=True)
    for part in result.partitions:
        distances, labels = cdist(result.rows, result.rows), part.labels
        same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
        means = (distances * same).sum(1) / np.maximum(same.sum(1), 1)  # 0 of a code alone
        assert part.numbers["distance"] == pytest.approx(means.mean())
    assert comparison.unit_rows(result.rows / lengths) is None
    unit = comparison.compare(result.settings, *_longer(result))
    found = [part.numbers["unit_against_random"] for part in unit.partitions[1:4]]
    assert found != [part.numbers["against_random"] for part in unit.partitions[1:4]]


def _longer(result):
    """The cluster map, codebook and rows of a comparison, every row of another length."""
    rows = result.rows * np.linspace(0.5, 2, len(result.rows))[:, None]
    codebook = torch.from_numpy(rows)
    return ClusterMap.from_labels(result.at(16)[0].labels, codebook, method="masc"), codebook, rows


def test_methods_keep_their_settings_and_progress_names_them(tiny_vq, monkeypatch):
    used, said = [], []
    monkeypatch.setattr(comparison, "say", lambda bar, *words: said.append(words))
    real = comparison.cluster_rows
    monkeypatch.setattr(comparison, "cluster_rows", lambda *a: used.append(a[1:]) or real(*a))
    codebook = tiny_vq().codebook.detach()
    rows = codebook.double().numpy()
    cluster_map = ClusterMap.from_labels(np.arange(32) % 16, codebook, method="kmeans")
    given = {"n_init": 3, "init": "k-means++"}
    settings = comparison.Settings("tiny", "kmeans", counts=[8], options=given)
    comparison.compare(settings, cluster_map, codebook, rows)
    assert ("kmeans", 8, 0, given) in used and ("kmeans", 16, 0, given) not in used
    assert ("balanced", 8, 0, {}) in used and ("random", 16, 0, {}) in used
    assert set(said) == {(m, k) for m in ("masc", "kmeans", "balanced", "random") for k in (8, 16)}
    monkeypatch.setattr(comparison, "ONE_START", 1)
    settings = comparison.Settings("tiny", "random", counts=[8])
    result = comparison.compare(settings, cluster_map, codebook, rows)
    assert ("kmeans", 8, 0, {"n_init": 1}) in used
    assert "kmeans has one start at K = 8: more would take long." in result.notes


def test_no_bar_is_clipped(compared):
    result, _ = compared
    uneven = [np.repeat(np.arange(16), [17, *[1] * 15]), np.repeat(np.arange(16), 2)]
    for part, labels in zip(result.at(16), uneven, strict=False):
        part.labels = labels  # 15 bars' worth beside 16 in one bar
    figure = sizes_figure(result)
    for axes in figure.axes:
        assert max(bar.get_height() for bar in axes.patches) < axes.get_ylim()[1]


def test_replacement_numbers_are_those_of_the_images(compared):
    result, vq_model = compared
    ids = replacement.encode_all(vq_model, result.photographs)  # all four are on the sheet
    by_image = []
    for part in result.at(16):
        cluster_map = ClusterMap.from_labels(part.labels, vq_model.codebook.detach())
        images = [
            replacement.decode_all(vq_model, replacement.replace_codes(ids, cluster_map, seed))
            for seed in range(comparison.DRAWS)
        ]
        assert torch.equal(images[0], part.images) and not torch.equal(images[0], images[1])
        by_image.append(torch.stack([psnr(one, result.photographs) for one in images]).mean(0))
        wanted = by_image[-1].mean().item()
        assert part.numbers["photograph_psnr"] == pytest.approx(wanted)
        wanted = [ssim(one, result.reconstructions).mean().item() for one in images]
        assert part.numbers["reconstruction_ssim"] == pytest.approx(np.mean(wanted))
        gaps = by_image[-1] - by_image[0]
        assert part.numbers["psnr_gap"] == pytest.approx(gaps.mean().item(), abs=1e-5)
        assert part.numbers["psnr_gap_error"] == pytest.approx(gaps.std().item() / 2, abs=1e-5)


def test_html_report_is_one_file_that_loads_nothing(compared, tmp_path):
    result, vq_model = compared
    result.at(8)[1].numbers |= {"psnr_gap": -0.001, "psnr_gap_error": 0.0}
    write_report(result, tmp_path / "report.html", vq_model)
    text = (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"(src|href)\s*=\s*['\"](?!data:)", text) and "http" not in text
    pictures = re.findall(r"data:image/png;base64,([^']+)'", text)
    assert len(pictures) == 4  # tree, sizes, curves, sheet
    for picture in pictures:
        Image.open(BytesIO(base64.b64decode(picture))).verify()
    cell = f"<td>{result.at(8)[0].numbers['photograph_psnr']:.2f}</td>"
    assert cell in text and "+0.00 ± 0.00" in text and "-0.00" not in text
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
