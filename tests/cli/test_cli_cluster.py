"""`codeclade cluster`: what it writes, what it replaces, and one sentence for everything wrong."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans

from codeclade import ClusterMap
from codeclade.cli import build_parser, main
from codeclade.cli.cluster import ClusterRecipe, read_recipe, usage
from codeclade.clustering import Masc
from codeclade.clustering import codebook as checks
from codeclade.components.cluster_map import codebook_sketch
from codeclade.training.encode import EncodeRecipe, encode


@pytest.fixture
def rows():
    return torch.randn(48, 4, generator=torch.Generator().manual_seed(2)).numpy()


@pytest.fixture
def source(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def run(*arguments) -> int:
    return main(["cluster", *map(str, arguments)])


def test_map_is_scipys_average_linkage(source, rows, tmp_path, capsys, relabelled):
    assert run(source, "--clusters", 12, "--out", tmp_path / "deep" / "map") == 0
    printed = capsys.readouterr().out
    cluster_map = ClusterMap.from_pretrained(tmp_path / "deep" / "map")
    tree = linkage(rows.astype(np.float64), "average")
    for k in (12, 5):  # the tree is saved with the map
        wanted = relabelled(fcluster(tree, k, "maxclust"))
        assert torch.equal(cluster_map.cut(k).mapping, wanted)
    assert cluster_map.config.method == "masc" and cluster_map.matches(torch.from_numpy(rows))
    sizes = cluster_map.sizes
    middle = f"{sizes.double().quantile(0.5):g}"  # of an even number the mean of two
    span = f"{sizes.min()} to {sizes.max()}"
    assert printed.startswith(f"48 codes in 12 clusters of {span} (median {middle})")
    assert len(printed.splitlines()) == 1


def test_normalize_clusters_directions_of_the_stored_rows(source, rows, tmp_path, relabelled):
    run(source, "--clusters", 8, "--normalize", "--out", tmp_path / "map")
    cluster_map = ClusterMap.from_pretrained(tmp_path / "map")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = relabelled(fcluster(linkage(unit.astype(np.float64), "average"), 8, "maxclust"))
    assert torch.equal(cluster_map.mapping, wanted)
    assert cluster_map.config.method == "masc-normalized"
    assert cluster_map.matches(torch.from_numpy(rows))


@pytest.mark.parametrize("method", ["dcpe", "kmeans", "balanced", "random"])
def test_every_method_and_its_seed(source, tmp_path, method):
    def mapping(name: str, seed: int) -> torch.Tensor:
        run(source, "--method", method, "--clusters", 8, "--seed", seed, "--out", tmp_path / name)
        return ClusterMap.from_pretrained(tmp_path / name).mapping

    first = mapping("a", 1)
    assert torch.equal(first, mapping("b", 1)) and len(first.unique()) == 8
    assert torch.equal(first, mapping("c", 2)) == (method == "dcpe")
    if method == "balanced":
        assert (first.bincount() == 6).all()


def write_shards(folder, rows, ids) -> None:
    """Code shards of a codebook (N, d), one image."""
    folder.mkdir(parents=True)
    shard = {"ids": torch.as_tensor(ids).int()[None, None], "labels": torch.zeros(1).int()}
    save_file(shard, folder / "codes-00000.safetensors")
    header = {
        "codebook_size": len(rows),
        "codebook_sketch": codebook_sketch(torch.from_numpy(rows)).tolist(),
        "shards": ["codes-00000.safetensors"],
    }
    (folder / "codes.json").write_text(json.dumps(header))


def test_usage_weighs_codes_by_their_number(source, rows, tmp_path, capsys):
    ids = np.random.default_rng(0).zipf(1.5, 4000) % 48
    write_shards(tmp_path / "codes" / "train", rows, ids)
    words = ["--clusters", 8, "--codes", tmp_path / "codes", "weights=usage"]
    assert run(source, *words, "--out", tmp_path / "map") == 0
    cluster_map = ClusterMap.from_pretrained(tmp_path / "map")
    weights = np.bincount(ids, minlength=48) + 1
    expected = Masc(8).fit(rows, weights=weights)
    assert np.array_equal(cluster_map.mapping.numpy(), expected.labels_)
    assert not np.array_equal(expected.labels_, Masc(8).fit(rows).labels_)
    assert cluster_map.config.method == "masc-weighted"
    # The folder of a split goes as well, and the tree is weighted for dcpe alike.
    words[3] = tmp_path / "codes" / "train"
    assert run(source, *words, "--method", "dcpe", "--out", tmp_path / "dcpe") == 0
    assert torch.equal(ClusterMap.from_pretrained(tmp_path / "dcpe").mapping, cluster_map.mapping)


def test_usage_that_cannot_be_counted_is_refused(source, rows, tmp_path, capsys):
    def refused(*words) -> str:
        assert run(source, "--clusters", 8, "--out", tmp_path / "map", *words) == 2
        assert not (tmp_path / "map").exists()
        return capsys.readouterr().err

    write_shards(tmp_path / "other", rows[::-1].copy(), [0, 1])
    assert "weights=usage needs --codes DIR" in refused("weights=usage")
    assert "weights is 'use'; it must be none or usage" in refused("weights=use")
    codes = ["--codes", tmp_path / "other"]
    assert "codes of another codebook" in refused(*codes, "weights=usage")
    assert "of methods masc and dcpe, not 'kmeans'" in refused(
        *codes, "weights=usage", "method=kmeans"
    )
    with pytest.raises(ValueError, match="has no detail codes to count"):
        usage(str(tmp_path / "other"), rows, "detail")


RECIPE = """
cluster: {method: kmeans, clusters: 8, normalize: true, init: k-means++, n_init: 3, seed: 5}
"""


def test_a_recipe_says_how_to_cluster(source, rows, tmp_path, relabelled):
    (tmp_path / "own.yaml").write_text(RECIPE)
    recipe = ["--recipe", tmp_path / "own.yaml", "--out"]
    assert run(source, *recipe, tmp_path / "map") == 0
    cluster_map = ClusterMap.from_pretrained(tmp_path / "map")
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    wanted = KMeans(8, init="k-means++", n_init=3, random_state=5).fit_predict(unit)
    assert torch.equal(cluster_map.mapping, relabelled(wanted))
    assert cluster_map.config.method == "kmeans-normalized"


def test_words_and_flags_come_over_the_recipe(source, tmp_path):
    (tmp_path / "own.yaml").write_text(RECIPE)

    def read(*words):
        given = ["cluster", str(source), "--recipe", str(tmp_path / "own.yaml"), "--out", "map"]
        return read_recipe(build_parser().parse_args([*given, *words]))

    assert read() == (ClusterRecipe(8, "kmeans", True, 5), {"init": "k-means++", "n_init": 3})
    changed, options = read("clusters=6", "n_init=2", "--no-normalize", "--seed", "1", "seed=2")
    assert changed == ClusterRecipe(6, "kmeans", False, 1) and options["n_init"] == 2
    with pytest.raises(ValueError, match=r"no setting 'init'; it has clusters, .* metric"):
        read("--method", "masc")  # k-means' own settings are none of average linkage


def test_a_map_is_replaced_and_nothing_else(source, tmp_path, capsys):
    out = tmp_path / "map"
    run(source, "--clusters", 8, "--out", out)
    run(source, "--clusters", 6, "--out", out)
    assert ClusterMap.from_pretrained(out).num_clusters == 6
    assert run(source, "--clusters", 49, "--out", out) == 2
    assert ClusterMap.from_pretrained(out).num_clusters == 6  # as it was
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    assert run(source, "--clusters", 6, "--out", tmp_path / "photos") == 2
    assert "holds other files" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map", "photos", "rows.npy"]


def with_value(value):
    def change(rows):
        rows[3, 1] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (with_value(np.nan), [], "1 hold NaN or infinity (first: row 3)"),
        (with_value(np.inf), [], "1 hold NaN or infinity (first: row 3)"),
        (lambda rows: rows[0], [], "two dimensions"),
        (lambda rows: rows[:0], [], "at least one row"),
        (lambda rows: rows > 0, [], "rows of numbers"),
        (lambda rows: rows * 0, ["--normalize"], "zero rows"),
        (None, ["--clusters", "0"], "from 1 to the 48 rows"),
        (None, ["--clusters", "49"], "from 1 to the 48 rows"),
        (None, ["--method", "balanced", "--clusters", "7"], "7"),
        (None, ["--method", "ward"], "method must be one of balanced, dcpe, kmeans, masc, random"),
        (None, ["n_init=3"], "no setting 'n_init'; it has clusters, method, normalize, seed"),
        (None, ["--method", "kmeans", "n_init=x"], "n_init='x' must be a whole number"),
        (None, ["--recipe", "iar2"], "has no section 'cluster'; its sections are tokenizer"),
        (None, ["--size", "l"], "--size l chooses a size of a recipe"),
        (None, ["--images", "photos"], "are for --report FILE"),
        (None, ["--report", "page.pdf"], "must end in .html or .png"),
        (None, ["--report", "nowhere/page.html"], "there is no folder nowhere"),
        (None, ["--report", "page.html", "--images", "."], "holds no tokenizer to decode"),
        (None, ["--report", "page.html", "--codes", "."], "holds no code shards"),
        (None, ["--report", "page.html", "--report-clusters", "99"], "from 1 to the 48 rows"),
        (None, ["--table", "detail"], "holds one array, so there is no --table detail"),
    ],
)
def test_bad_input_is_one_sentence(
    source, rows, tmp_path, capsys, monkeypatch, change, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if change:
        np.save(source, change(rows))
    assert run(source, "--clusters", 8, "--out", "map", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_clusters_are_needed(source, tmp_path, capsys):
    assert run(source, "--out", tmp_path / "map") == 2
    assert "cluster needs clusters; give clusters=..." in capsys.readouterr().err


def test_too_little_memory_is_said_before_the_work(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "available_memory", lambda: 1000)
    assert run(source, "--clusters", 8, "--out", tmp_path / "map") == 2
    assert "of memory are available" in capsys.readouterr().err


def test_table_of_an_iar2_file(rows, tmp_path):
    rows = torch.from_numpy(rows)
    weights = {"quantize.embedding.weight": rows[:16].clone(), "quantize.embedding_second": rows}
    save_file(weights, tmp_path / "iar2.safetensors")
    for table, size in (("semantic", 16), ("detail", 48)):
        out = tmp_path / table
        run(tmp_path / "iar2.safetensors", "--table", table, "--clusters", 4, "--out", out)
        assert ClusterMap.from_pretrained(out).codebook_size == size


def test_images_too_small_for_the_report_are_refused_before_the_work(tmp_path, tiny_vq, capsys):
    tiny_vq(sample_size=8).save_pretrained(tmp_path / "vq")
    map_and_page = ["--out", tmp_path / "map", "--report", tmp_path / "page.html"]
    assert run(tmp_path / "vq", "--clusters", 8, *map_and_page, "--images", tmp_path) == 2
    words = "is for images of 8x8 pixels, and the replacement test needs 16x16; leave --images out."
    assert words in capsys.readouterr().err and not (tmp_path / "map").exists()


def test_report_with_images_and_codes(tmp_path, tiny_vq, capsys):
    vq_model = tiny_vq()
    vq_model.save_pretrained(tmp_path / "vq_model")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            image = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    encode(EncodeRecipe(data=str(tmp_path / "photos"), image_size=16), vq_model, tmp_path / "codes")
    options = ["--report", tmp_path / "page.html", "--images", tmp_path / "photos"]
    options += ["--num-images", 3, "--codes", tmp_path / "codes" / "train"]
    options += ["--report-clusters", 8]
    out = tmp_path / "map"
    assert run(tmp_path / "vq_model", "--clusters", 16, "--out", out, *options) == 0
    text = (tmp_path / "page.html").read_text()
    for part in ("3 photographs", "(train shards)", "Semantic replacement test", "<td>kmeans</td>"):
        assert part in text
    assert capsys.readouterr().out.splitlines()[-1] == f"report in {tmp_path / 'page.html'}"


def test_report_of_another_librarys_tokenizer(tmp_path):
    model = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
        sample_size=16,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "vq")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 24), "red").save(tmp_path / "photos" / "a.png")
    options = ["--report", tmp_path / "page.html", "--images", tmp_path / "photos"]
    assert run(tmp_path / "vq", "--clusters", 8, "--out", tmp_path / "map", *options) == 0
    text = (tmp_path / "page.html").read_text()
    assert "1 photograph of" in text and ", 16x16, center crops" in text


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["cluster", "--help"])
    text = capsys.readouterr().out
    assert "--report report.html --images photos/" in text and "Janus" in text
