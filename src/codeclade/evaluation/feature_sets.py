"""Sets of images as a feature network sees them, and how far two sets are from each other.

A set is built batch by batch in bounded memory: exact sums for the Fréchet distance, however many
images there are, and the features themselves of at most 50,000 images for what needs neighbors.

Shapes: B images, n images kept, D features, S spatial features, C classes of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.hub_ids import is_hub_id
from ..metrics.distances import frechet_distance, kernel_distance, subset_distances
from ..metrics.inception import Inception
from ..metrics.inception_score import split_scores
from ..metrics.networks import FeatureNetwork
from ..metrics.precision_recall import NEIGHBORS, precision_recall
from ..metrics.pretrained import Dinov2, EfficientNetLite, Vgg16
from ..metrics.statistics import FeatureStatistics, gaussian_distance
from ..metrics.torchscript import TorchScript

NETWORKS = {
    "lite0": lambda: EfficientNetLite(0),
    "lite2": lambda: EfficientNetLite(2),
    "vgg16": Vgg16,
    "dinov2": Dinov2,
}
# Networks whose weights the user names.
GIVEN = {"inception": Inception.from_file, "dinov2": Dinov2, "torchscript": TorchScript}
ALLOWED = f"{', '.join(NETWORKS)}, dinov2=MODEL, inception=FILE or torchscript=FILE"
KEPT = 50_000  # images whose features are kept: 410 MB of Inception's, and as much for sFID
SUBSETS, SUBSET = 100, 1000  # of KID as published, where there are images enough
GROUPS = 10  # of images, left out in turn for standard errors
GOLDEN = (5**0.5 - 1) / 2  # multiples of it are spread most evenly between whole numbers
ERROR_ROWS = 10_000  # images of a set at most from which errors of precision and the like are taken
SCORE_SPLITS = 10  # parts of the Inception Score


def check_network(name: str) -> None:
    """Raise a ValueError unless `open_network` knows the name; a file must be there."""
    kind, equals, given = name.partition("=")
    if name not in NETWORKS and (kind not in GIVEN or not given):
        raise ValueError(f"--features {name} is unknown; use {ALLOWED}.")
    if kind in ("inception", "torchscript") and not Path(given).is_file():
        raise ValueError(f"--features {name}: there is no file {given}.")
    if kind == "dinov2" and equals and not Path(given).is_dir() and not is_hub_id(given):
        raise ValueError(f"--features {name}: {given} is no folder here and no Hub id (user/name).")


def open_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network of one of the names in `ALLOWED`, on a device.

    Raises:
        ValueError: another name, or a file that does not hold the weights.
        ImportError, FileNotFoundError: packages or weights that are not here.
    """
    check_network(name)
    kind, _, given = name.partition("=")
    network = GIVEN[kind](given) if given else NETWORKS[name]()
    return network.to(device)


class FeatureSet:
    """Images of one set, seen by one network.

    Args:
        network: makes the features; on the device where it shall run.
        classes: of the network, in the order of the labels; with them the share of images is
            counted whose label has the largest logit among them.

    Attributes:
        count: images so far.
    """

    def __init__(self, network: FeatureNetwork, classes: list[int] | None = None):
        self.network, self.classes = network, classes
        self.count = self.correct = 0
        self.statistics: FeatureStatistics | None = None
        self.spatial: FeatureStatistics | None = None
        self.rows: list[Tensor] = []  # n x (D,)
        self.spatial_rows: list[Tensor] = []  # n x those of sFID
        self.logits: list[Tensor] = []  # n x (C,)
        self.hits: list[Tensor] = []  # of every batch, whether labels have the largest logit
        self.draws = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def add(self, pixels: Tensor, labels: Tensor) -> None:
        """Add images: pixels (B, 3, S, S) in [-1, 1] and labels (B,)."""
        output = self.network(pixels.to(next(self.network.parameters()).device))
        features = output.features.float().cpu()
        # Sums are exact for any number of images; how wide they are is known from the first batch.
        if self.statistics is None:
            self.statistics = FeatureStatistics(features.shape[1], self.network.fingerprint)
            if output.spatial is not None:
                spatial = output.spatial.shape[1]
                self.spatial = FeatureStatistics(spatial, self.network.fingerprint)
        self.statistics.update(features)
        if self.spatial is not None:
            self.spatial.update(output.spatial)
        logits, spatial = (
            None if x is None else x.float().cpu() for x in (output.logits, output.spatial)
        )
        # The largest logit among the classes asked for, not among all thousand.
        if self.classes is not None:
            chosen = logits[:, self.classes].argmax(1)
            self.hits.append(chosen == labels)
            self.correct += int(self.hits[-1].sum())

        # Once KEPT are held, image i takes a place with probability KEPT / i: a uniform sample.
        for index, row in enumerate(features):
            self.count += 1
            place = len(self.rows)
            if place == KEPT:
                place = int(torch.randint(self.count, (), generator=self.draws))
                if place >= KEPT:
                    continue
            self.rows[place : place + 1] = [row.clone()]  # not a view, which would hold its batch
            for kept, found in ((self.logits, logits), (self.spatial_rows, spatial)):
                if found is not None:
                    kept[place : place + 1] = [found[index].clone()]

    @property
    def features(self) -> Tensor:
        """Features (n, D) that were kept."""
        return torch.stack(self.rows)

    @property
    def spatial_features(self) -> Tensor:
        """Spatial features (n, S) that were kept."""
        return torch.stack(self.spatial_rows)

    @property
    def accuracy(self) -> float:
        """Share of images whose label has the largest logit."""
        return self.correct / self.count

    def joined(self, other: "FeatureSet") -> "FeatureSet":
        """Both sets as one, images in turn; of more than KEPT a random part of both is kept."""
        both = FeatureSet(self.network, self.classes)
        both.count, both.correct = self.count + other.count, self.correct + other.correct
        for name in ("statistics", "spatial"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None:
                total = FeatureStatistics(mine.sums.shape[1], mine.network)
                total.merge(mine)
                if theirs is not None:
                    total.merge(theirs)
                setattr(both, name, total)
        # Of too many rows each set keeps its share, from all over it: sets are often sorted by
        # class, so its first rows would be those of some classes.
        sets = self, other
        places = [range(len(x.rows)) for x in sets]
        if sum(map(len, places)) > KEPT:
            share = min(round(KEPT * self.count / both.count), len(self.rows))
            share = max(share, KEPT - len(other.rows))
            draws = torch.Generator().manual_seed(0)
            places = [
                torch.randperm(len(x.rows), generator=draws)[:some].sort().values.tolist()
                for x, some in zip(sets, (share, KEPT - share), strict=True)
            ]
        for name in ("rows", "logits", "spatial_rows"):
            kept = [[rows[i] for i in some] if (rows := getattr(x, name)) else []
                    for x, some in zip(sets, places, strict=True)]  # fmt: skip
            setattr(both, name, _in_turn(*kept))
        return both


def _in_turn(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """a[0], b[0], a[1], ...; what is left of the longer one at the end."""
    pairs = [row for pair in zip(a, b, strict=False) for row in pair]
    shorter = min(len(a), len(b))
    return pairs + a[shorter:] + b[shorter:]


def standard_error(deviations: Tensor | None) -> float | None:
    """What deviations (see `Distance`) say; None where there are none."""
    return None if deviations is None else float(deviations.square().mean().sqrt())


@dataclass
class Distance:
    """One number on two sets of images.

    Args:
        name: of the metric.
        value: the number.
        deviations: what the value would be without some of the images, less the mean of that, and
            scaled: their root mean square is the standard error. Those of two measurements of the
            same images are differences in pairs. None where no error is known.
        estimator: the formula, in words.
    """

    name: str
    value: float
    deviations: Tensor | None = None
    estimator: str = ""

    @property
    def standard_error(self) -> float | None:
        """Of the value; None where none is known."""
        return standard_error(self.deviations)


def set_distances(
    samples: FeatureSet, reference: FeatureSet, quick: bool = False, errors: bool = True
) -> list[Distance]:
    """Everything that compares two sets, of at least two images each.

    Args:
        quick: KID alone, whose mean does not depend on the number of images.
        errors: whether standard errors are wanted too, which take most of the time.

    Fréchet distance (of Inception also sFID), KID, precision, recall, density and coverage; the
    last four only where both sets have more images than neighbors are asked for.
    """
    network = samples.network
    published = network.distance_name == "FID"
    kept = f"{len(samples.rows):,} of {samples.count:,} and {len(reference.rows):,} of "
    kept += f"{reference.count:,} images"
    # KID is unbiased, so a first look at few images has it too.
    name = "KID" if published else f"KID-{network.name}"
    kid = _kernel_distance(samples.features, reference.features, errors, name)
    if quick:
        return [kid]
    found = [frechet(samples, reference, errors)]
    # Of Inception also where things are in the image: sFID.
    if samples.spatial is not None:
        found.append(frechet(samples, reference, errors, spatial=True))
    found.append(kid)
    # Shares of images that lie near the other set, which need neighbors.
    if min(len(samples.rows), len(reference.rows)) > NEIGHBORS:
        pair = reference.features, samples.features
        spreads = neighbor_deviations(*pair) if errors else {}
        words = f"k = {NEIGHBORS}, {kept}"
        for name, value in precision_recall(*pair).items():
            whole = f"{name.capitalize()}-{network.name}"
            found.append(Distance(whole, value, spreads.get(name), words))
    return found


def scores(samples: FeatureSet) -> list[Distance]:
    """Inception Score, where the network has a classifier and there are images enough."""
    if len(samples.logits) < SCORE_SPLITS:
        return []
    shuffle = torch.randperm(len(samples.logits), generator=torch.Generator().manual_seed(0))
    parts = split_scores(torch.stack(samples.logits)[shuffle], SCORE_SPLITS)
    published = samples.network.distance_name == "FID"
    name = "Inception Score" if published else f"Inception Score-{samples.network.name}"
    words = f"mean over {SCORE_SPLITS} parts of {len(shuffle):,} shuffled images"
    deviations = (parts - parts.mean()) / SCORE_SPLITS**0.5
    return [Distance(name, float(parts.mean()), deviations, words)]


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent images; as if there were one image more of
    each kind, so that a share of 0 or 1 is not said to be certain."""
    share = (share * count + 1) / (count + 2)
    return (share * (1 - share) / count) ** 0.5


def groups_of(count: int) -> Tensor:
    """Group (count,) of every image, 0 to GROUPS - 1; groups are left out for standard errors.

    Two neighbors share a group, since `PhotographSets` may have exchanged them. Beyond that groups
    follow each other without a period: if every tenth image were one, a group of data that shows
    ten classes in turn would be a class.
    """
    pairs = (count + 1) // 2
    order = (torch.arange(pairs, dtype=torch.float64) * GOLDEN % 1).argsort()
    groups = torch.empty(pairs, dtype=torch.int64)
    groups[order] = torch.arange(pairs) * GROUPS // pairs
    return groups.repeat_interleave(2)[:count]


def jackknife(
    measure: Callable[[Tensor, Tensor], dict[str, float]], a: Tensor, b: Tensor
) -> dict[str, Tensor]:
    """Deviations (see `Distance`) of what is measured on features (n, D) and (m, D), by name: each
    tenth of both is left out in turn. Empty where there are too few images."""
    if min(len(a), len(b)) < 2 * GROUPS:
        return {}
    groups = [groups_of(len(x)).to(x.device) for x in (a, b)]
    without = [
        measure(*(x[of != group] for x, of in zip((a, b), groups, strict=True)))
        for group in range(GROUPS)
    ]
    values = {name: torch.tensor([x[name] for x in without]).double() for name in without[0]}
    return {name: (GROUPS - 1) ** 0.5 * (x - x.mean()) for name, x in values.items()}


def neighbor_deviations(reference: Tensor, samples: Tensor) -> dict[str, Tensor]:
    """Deviations of precision, recall, density and coverage of features (n, D) and (m, D).

    They fall with the root of the counts, so of many images those of a part, evenly spread, are
    taken and made smaller; ten passes over all pairs would take hours.
    """
    sets = reference, samples
    counts = [min(len(x), ERROR_ROWS) for x in sets]
    some = [x[torch.arange(n) * len(x) // n] for x, n in zip(sets, counts, strict=True)]
    share = max(n / len(x) for x, n in zip(sets, counts, strict=True))
    found = jackknife(precision_recall, *some)
    return {name: share**0.5 * deviations for name, deviations in found.items()}


def frechet(
    samples: FeatureSet, reference: FeatureSet, errors: bool = True, spatial: bool = False
) -> Distance:
    """The Fréchet distance of all images, with the standard error of those that were kept.

    Args:
        spatial: of where things are in the image (sFID), not of what is in it.
    """
    name = samples.network.distance_name
    if spatial:
        name = "sFID" if name == "FID" else f"spatial {name}"
    sets = samples, reference
    sums = [x.spatial if spatial else x.statistics for x in sets]
    value = gaussian_distance(*(x.gaussian() for x in sums))
    found = {}
    if errors:
        rows = [x.spatial_features if spatial else x.features for x in sets]
        found = jackknife(lambda *pair: {name: frechet_distance(*pair)}, *rows)
    return Distance(name, value, found.get(name), "Fréchet distance, biased by the counts")


def _kernel_distance(a: Tensor, b: Tensor, errors: bool, name: str) -> Distance:
    """KID with its standard error."""
    if min(len(a), len(b)) >= 2 * SUBSET:
        values = subset_distances(a, b, SUBSETS, SUBSET)
        # The spread over subsets is that of SUBSET images; the mean is of all of them.
        deviations = (values - values.mean()) * (SUBSET / min(len(a), len(b))) ** 0.5
        words = f"mean over {SUBSETS} subsets of {SUBSET} images"
        return Distance(name, float(values.mean()), deviations, words)
    found = jackknife(lambda *pair: {name: kernel_distance(*pair)}, a, b) if errors else {}
    words = "unbiased, all pairs of images"
    return Distance(name, kernel_distance(a, b), found.get(name), words)
