"""Sets of images in feature space: what is kept, what is exact, what is named how."""

import pytest
import torch
from torch import nn

from codeclade.evaluation import feature_sets
from codeclade.evaluation.feature_sets import (
    FeatureSet,
    check_network,
    groups_of,
    jackknife,
    neighbor_deviations,
    scores,
    set_distances,
    share_error,
)
from codeclade.metrics.distances import frechet_distance, kernel_distance
from codeclade.metrics.networks import NetworkOutput
from codeclade.metrics.precision_recall import precision_recall


class Linear(nn.Module):
    """A random projection as a network: 6 features, 4 logits, 3 spatial features."""

    name, distance_name, fingerprint = "Linear", "FD-Linear", "linear"

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * 8 * 8, 13, generator=draws))

    def forward(self, pixels):
        # float64, so that the features of an image do not depend on its batch
        features = pixels.flatten(1).double() @ self.weight.double()
        features = features.float()
        return NetworkOutput(features[:, :6], features[:, 6:10], features[:, 10:])


def images(count: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=draws) * 0.3 + shift


@torch.no_grad()
def filled(pixels: torch.Tensor, batch: int = 7, classes=None) -> FeatureSet:
    found = FeatureSet(Linear().requires_grad_(False), classes)
    labels = torch.arange(len(pixels)) % 2
    for some, theirs in zip(pixels.split(batch), labels.split(batch), strict=True):
        found.add(some, theirs)
    return found


def test_distances_are_those_of_all_features_at_once():
    a, b = images(40), images(50, 1, 0.1)
    found = {one.name: one for one in set_distances(filled(a), filled(b))}
    network = Linear().requires_grad_(False)
    x, y = network(a).features, network(b).features
    assert found["FD-Linear"].value == pytest.approx(frechet_distance(x, y), rel=1e-6)
    spatial = frechet_distance(network(a).spatial, network(b).spatial)
    assert found["spatial FD-Linear"].value == pytest.approx(spatial, rel=1e-6)
    assert found["KID-Linear"].value == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert all(one.standard_error > 0 for one in found.values())
    quicker = set_distances(filled(a), filled(b), errors=False)
    assert [one.value for one in quicker] == [one.value for one in found.values()]
    assert {one.standard_error for one in quicker} == {None}
    fewer = set_distances(filled(a[:19]), filled(b))
    assert {one.standard_error for one in fewer} == {None}
    for name, value in precision_recall(y, x).items():
        assert found[f"{name.capitalize()}-Linear"].value == value
    same = {one.name: one.value for one in set_distances(filled(a), filled(a, batch=13))}
    assert same["FD-Linear"] == pytest.approx(0, abs=1e-6)


def size_of(deviations: list[torch.Tensor]) -> torch.Tensor:
    """The standard error that many sets' deviations say."""
    return torch.stack(deviations).square().mean().sqrt()


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_standard_error_is_the_spread_over_many_sets(distance):
    draws = torch.Generator().manual_seed(0)
    values, found = [], []
    for _ in range(100):
        a = torch.randn(60, 4, generator=draws)
        b = 1.2 * torch.randn(50, 4, generator=draws) + 0.3
        values.append(distance(a, b))
        found.append(jackknife(lambda *pair: {"": distance(*pair)}, a, b)[""])
    spread = torch.tensor(values).std()
    assert 0.8 * spread < size_of(found) < 1.6 * spread  # rather too large, as jackknives are


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_differences_on_the_same_photographs_have_their_own_error(distance):
    draws = torch.Generator().manual_seed(0)
    gaps, paired, apart = [], [], []
    for _ in range(60):
        photographs, images = torch.randn(2, 60, 4, generator=draws)
        noise = 0.3 * torch.randn(2, 60, 4, generator=draws)
        few = images + noise[0] + 0.5, images + noise[1] + 0.6  # of the same seeds
        found = [jackknife(lambda *pair: {"": distance(*pair)}, x, photographs)[""] for x in few]
        gaps.append(distance(few[1], photographs) - distance(few[0], photographs))
        paired.append(found[1] - found[0])
        apart.append((found[0].square() + found[1].square()).sqrt())
    spread = torch.tensor(gaps).std()
    assert 0.8 * spread < size_of(paired) < 1.6 * spread
    assert size_of(paired) < 0.7 * size_of(apart)


@pytest.mark.parametrize("period", [1, 2, 3, 5, 10, 20])
def test_groups_are_equal_parts_of_every_class(period):
    groups, classes = groups_of(1000), torch.arange(1000) % period
    assert torch.equal(groups.bincount(), torch.full((10,), 100))
    assert torch.equal(groups[::2], groups[1::2])  # neighbors together
    for kind in range(period):
        share = groups[classes == kind].bincount(minlength=10) * period / 1000
        assert (share - 0.1).abs().max() <= 0.04
    assert len(groups_of(20).unique()) == 10 and len(groups_of(21)) == 21


def test_errors_of_neighbors_are_the_spread_over_many_sets(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    values, errors, parts = [], [], []
    for _ in range(40):
        a = torch.randn(120, 8, generator=draws)
        b = 0.8 * torch.randn(120, 8, generator=draws) + 0.2
        values.append(list(precision_recall(a, b).values()))
        errors.append(torch.stack(list(neighbor_deviations(a, b).values())))
        with monkeypatch.context() as few:
            few.setattr(feature_sets, "ERROR_ROWS", 60)
            parts.append(torch.stack(list(neighbor_deviations(a, b).values())))
    spread = torch.tensor(values).std(0)
    for said in (errors, parts):  # rather too large, as jackknives are
        found = torch.stack(said).square().mean((0, 2)).sqrt()
        assert ((0.9 * spread < found) & (found < 2 * spread)).all(), (spread, found)


def test_many_images_have_the_error_of_all_subsets(monkeypatch):
    monkeypatch.setattr(feature_sets, "SUBSET", 20)
    (kid,) = set_distances(filled(images(90)), filled(images(80, 1, 0.1)), quick=True)
    assert len(kid.deviations) == 100 and kid.estimator == "mean over 100 subsets of 20 images"
    whole = jackknife(
        lambda *pair: {"": kernel_distance(*pair)},
        *(filled(x).features for x in (images(90), images(80, 1, 0.1))),
    )
    assert 0.4 < kid.standard_error / size_of([whole[""]]) < 2


def test_a_share_is_never_certain():
    assert share_error(0.5, 400) == pytest.approx(0.025)
    assert [share_error(x, 16) for x in (0.0, 1.0)] == pytest.approx([0.0573] * 2, abs=1e-4)
    assert share_error(0.676, 1024) == pytest.approx(0.0146, abs=1e-4)


def test_two_halves_are_the_whole():
    pixels = images(21)
    whole = filled(pixels, classes=[0, 2])
    halves = filled(pixels[::2], classes=[0, 2]), filled(pixels[1::2], classes=[0, 2])
    both = halves[0].joined(halves[1])
    assert both.count == 21 and torch.equal(both.statistics.sums, whole.statistics.sums)
    assert torch.equal(both.spatial.moments, whole.spatial.moments)
    assert torch.allclose(both.features, whole.features) and both.rows[20].shape == (6,)
    assert len(both.logits) == 21


@pytest.mark.parametrize("many", [60, 300])
def test_halves_that_are_joined_keep_images_of_every_class(many, monkeypatch):
    monkeypatch.setattr(feature_sets, "KEPT", 40)
    # Sorted by class, as image folders are: an image's place is its brightness.
    pixels = torch.linspace(0, 1, many).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    both = filled(pixels[::2]).joined(filled(pixels[1::2]))
    assert both.count == many and len(both.rows) == len(both.logits) == 40
    white = Linear()(torch.ones(1, 3, 8, 8)).features[0].detach()
    found = torch.stack([row @ white / (white @ white) for row in both.rows])
    for part in range(4):
        assert 4 <= ((found >= part / 4) & (found < (part + 1) / 4)).sum() <= 17


def test_accuracy_is_among_the_classes_given():
    pixels = images(30)
    found = filled(pixels, classes=[3, 1])
    chosen = Linear().requires_grad_(False)(pixels).logits[:, [3, 1]].argmax(1)
    assert found.accuracy == pytest.approx((chosen == torch.arange(30) % 2).float().mean().item())


def test_no_more_features_are_kept_than_said(monkeypatch):
    monkeypatch.setattr(feature_sets, "KEPT", 20)
    pixels = images(400)
    found = filled(pixels)
    assert len(found.rows) == len(found.logits) == 20 and found.count == 400
    assert found.statistics.count == 400
    everything = Linear().requires_grad_(False)(pixels).features
    places = [(everything - row).abs().sum(1).argmin().item() for row in found.rows]
    assert len(set(places)) == 20
    assert 100 < sum(places) / 20 < 300  # of all parts of the set, not of its beginning
    assert found.rows[0].untyped_storage().nbytes() == 6 * 4  # no batch is held by its rows


def test_scores_have_the_name_of_their_network():
    (score,) = scores(filled(images(40)))
    assert score.name == "Inception Score-Linear" and 1 < score.value < 4
    assert scores(filled(images(9))) == []


def test_networks_are_named():
    check_network("lite2")
    with pytest.raises(ValueError, match="--features inception is unknown"):
        check_network("inception")
