"""Features of photographs are made once, and made again where the cache is of no use."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from builders import build_vq
from codeclade.evaluation import feature_cache, feature_sets
from codeclade.evaluation.feature_cache import PhotographSets, features_folder, in_other_half
from codeclade.evaluation.feature_sets import FeatureSet, set_distances
from codeclade.evaluation.measure import measure_tokenizer
from codeclade.evaluation.reference import open_photographs
from codeclade.evaluation.resize import sized_batches
from codeclade.evaluation.search import photograph_set
from evaluation.colors import Colors


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CODECLADE_FEATURES", str(tmp_path / "cache"))
    return tmp_path / "cache"


def halves(network, photos, size=16, batch_size=4, classes=None) -> list[FeatureSet]:
    photographs = open_photographs(str(photos), 16)
    sets = PhotographSets(network, photographs, size, classes)
    for images, labels in sized_batches(photographs.images, size, batch_size):
        sets.add(images, labels)
    return sets.finish(batch_size)


def same(a: list[FeatureSet], b: list[FeatureSet]) -> None:
    for mine, theirs in zip(a, b, strict=True):
        assert (mine.count, mine.correct) == (theirs.count, theirs.correct)
        assert torch.equal(mine.features, theirs.features)
        for name in ("statistics", "spatial"):
            x, y = getattr(mine, name), getattr(theirs, name)
            assert torch.equal(x.sums, y.sums) and torch.equal(x.moments, y.moments)
            assert (x.count, x.network) == (y.count, y.network)
    one, other = ([(x.name, x.value) for x in set_distances(*halves)] for halves in (a, b))
    assert one == other and len(one) == 7


@pytest.mark.parametrize("most", [50_000, 6])
def test_a_second_time_no_network_runs(photos, folder, monkeypatch, most):
    monkeypatch.setattr(feature_sets, "KEPT", most)  # with 6, sums cannot be made of the rows
    network = Colors()
    first = halves(network, photos, classes=[0, 3, 2, 5, 1])
    assert network.seen == 20 and first[0].correct + first[1].correct > 0
    (file,) = folder.iterdir()
    written = file.read_bytes()
    second = halves(network, photos, batch_size=32, classes=[0, 3, 2, 5, 1])
    assert network.seen == 20 and file.read_bytes() == written
    same(first, second)
    # Other classes, another size, another network: other entries.
    halves(network, photos)
    halves(network, photos, size=8)
    other = Colors()
    other.fingerprint = "2" * 64
    halves(other, photos)
    assert (network.seen, other.seen) == (60, 20) and len(list(folder.iterdir())) == 4


def test_measuring_again_runs_the_network_on_the_new_images_alone(photos):
    photographs, network = open_photographs(str(photos), 16), Colors()
    first = measure_tokenizer(build_vq(), photographs, network)
    assert network.seen == 40
    again = measure_tokenizer(build_vq(1), photographs, network)
    assert network.seen == 60
    floors = [[x.floor for x in one.records if x.floor is not None] for one in (first, again)]
    assert floors[0] == floors[1] and len(floors[0]) == 2
    found = photograph_set(network, photographs, 16, 8)  # of a search
    assert network.seen == 60 and found.count == 20


@pytest.mark.parametrize("period", [2, 3, 5, 10])
def test_a_half_has_its_share_of_every_class(period):
    places = torch.arange(400)
    other = in_other_half(places)
    assert (other[::2] ^ other[1::2]).all()  # of two neighbors one each, as of sorted classes
    for kind in range(period):  # and of classes that follow each other in turn
        share = other[places % period == kind].float().mean()
        assert 0.42 < share < 0.58


def test_other_photographs_are_never_mistaken(photos, monkeypatch):
    monkeypatch.setattr(feature_cache, "SAMPLE", 1)  # the first photograph alone names the entry
    network = Colors()
    before = halves(network, photos)
    last = sorted((photos / "validation").rglob("*.png"))[-1]
    Image.fromarray(np.full((16, 16, 3), 200, dtype=np.uint8)).save(last)
    after = halves(network, photos)
    assert network.seen == 40 and not torch.equal(before[1].features, after[1].features)
    same(after, halves(network, photos))
    assert network.seen == 40


@pytest.mark.parametrize("damage", ["cut", "changed", "garbage"])
def test_a_damaged_entry_is_made_again(photos, folder, damage):
    network = Colors()
    first = halves(network, photos)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-8]
    elif damage == "changed":
        content[-3] ^= 1
    else:
        content = b"no tensors"
    file.write_bytes(content)
    same(first, halves(network, photos))
    assert network.seen == 40
    same(first, halves(network, photos))
    assert network.seen == 40


def test_a_cache_that_cannot_be_written_stops_nothing(photos, folder):
    folder.write_text("a file where the folder should be")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = halves(Colors(), photos)
    assert sum(half.count for half in found) == 20
    assert any("were not kept" in str(one.message) for one in told)


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    assert features_folder() == tmp_path / "cache"
    monkeypatch.delenv("CODECLADE_FEATURES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features_folder() == tmp_path / "codeclade" / "features"
