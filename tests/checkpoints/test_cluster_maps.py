"""Cluster maps are saved whole or not at all, and never over anything else."""

import json

import pytest
import torch

from codeclade import ClusterMap
from codeclade.checkpoints.cluster_maps import check_out, make_cluster_map, save_cluster_map


@pytest.fixture
def maps():
    rows = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return [make_cluster_map(rows, "masc", count)[0] for count in (6, 4)]


def test_a_map_and_where_it_comes_from(maps, tmp_path):
    save_cluster_map(maps[0], tmp_path / "deep" / "map", "owner/name")
    assert ClusterMap.from_pretrained(tmp_path / "deep" / "map").num_clusters == 6
    record = json.loads((tmp_path / "deep" / "map" / "provenance.json").read_text())
    assert list(record) == ["statement"] and "codebook of owner/name" in record["statement"]


def test_settings_of_a_method_reach_it():
    rows = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    first = make_cluster_map(rows, "kmeans", 6, options={"n_init": 1})[0]
    assert not torch.equal(first.mapping, make_cluster_map(rows, "kmeans", 6)[0].mapping)
    with pytest.raises(ValueError, match="nothing_such"):
        make_cluster_map(rows, "kmeans", 6, options={"nothing_such": 1})


@pytest.mark.parametrize("where", ["weights", "provenance", "rename"])
def test_a_map_that_is_there_survives_a_failure_at_any_point(maps, tmp_path, monkeypatch, where):
    out = tmp_path / "map"
    save_cluster_map(maps[0], out, "first")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    if where == "weights":
        monkeypatch.setattr(ClusterMap, "save_pretrained", fail)
    elif where == "provenance":
        monkeypatch.setattr("codeclade.checkpoints.cluster_maps.write_json", fail)
    else:
        rename = type(out).rename

        def once(path, target):
            return fail() if ".partial" in path.name else rename(path, target)

        monkeypatch.setattr(type(out), "rename", once)
    with pytest.raises(OSError, match="no space left"):
        save_cluster_map(maps[1], out, "second")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_nothing_but_a_map_is_replaced(maps, tmp_path):
    out = tmp_path / "map"
    save_cluster_map(maps[0], out, "first")
    check_out(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        check_out(out)
    (out / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ValueError, match="is a symbolic link; give a folder"):
        check_out(tmp_path / "link")
    for text in ("[]", "{", "[" * 100_000):
        (out / "config.json").write_text(text)
        with pytest.raises(ValueError) as caught:
            check_out(out)
        assert len(str(caught.value)) < 300
