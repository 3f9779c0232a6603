"""Mean and covariance of image features, image by image, and the Fréchet distance of two such sets.

Float64 throughout. Sums of rounded floats depend on their order, so a mean taken by three
processes would differ from one process's in the last digits. Here every feature is first written as
three integers of 15 bits (a fixed-point number with steps of 2^-33); sums of their products stay
below 2^53, so float64 holds them exactly. Whatever the batches, their order and the number of
processes, the sums, and so mean, covariance and distance, are the same bit for bit. Adding the sums
of two processes (also through an all-reduce) is exact for the same reason.

Files are .npz. `mu` and `sigma` are named as in the reference files of pytorch-fid and of ADM's
evaluator (which adds `mu_s`, `sigma_s` for sFID), so both can be read, and both can read ours.

Shapes: n images, D features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RANGE = 2.0**12  # features must lie in [-4096, 4096]
BITS, LIMBS = 15, 3  # a feature is LIMBS integers of BITS bits and their signs
UNITS = [RANGE * 2.0 ** (-BITS * (j + 1)) for j in range(LIMBS)]  # 2^-3, 2^-18, 2^-33
ORDERS = 2 * LIMBS - 1  # products of limbs i and j share one sum for each i + j
MOST_IMAGES = 2**21  # beyond, a sum could pass 2^53 and lose its last digit


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of a set of features, float64.

    Args:
        count: images behind it; 0 where a file of somebody else does not say.
        network: fingerprint of the network that made the features; empty where unknown.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int = 0
    network: str = ""

    @cached_property
    def factor(self) -> np.ndarray:
        """F (D, r) with F F' the covariance; directions that are rounding alone are left out."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    def save(self, path: str | Path) -> None:
        """Write `mu`, `sigma`, `count` and `network` to an .npz file."""
        with Path(path).open("wb") as file:  # given a name, NumPy may add an ending to it
            np.savez(file, mu=self.mean, sigma=self.covariance, count=self.count,
                     network=self.network)  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, spatial: bool = False) -> Gaussian:
        """Read a file of ours, of pytorch-fid or of ADM's evaluator.

        Args:
            spatial: take ADM's statistics for sFID, `mu_s` and `sigma_s`.

        Raises:
            ValueError: the arrays are missing or do not fit each other.
        """
        names = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in names if name not in file]:
                raise ValueError(f"{path} has no {missing[0]}; it has {', '.join(file.files)}.")
            mean, covariance = (np.asarray(file[name], dtype=np.float64) for name in names)
            count = int(file["count"]) if "count" in file else 0
            network = str(file["network"]) if "network" in file else ""
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"{path}: {names[0]} must be (D,) and {names[1]} (D, D), "
                f"got {mean.shape} and {covariance.shape}."
            )
        return cls(mean, covariance, count, network)


class FeatureStatistics:
    """Running sums of features, exact in any order.

    Args:
        size: D, features of an image.
        network: fingerprint of the network; statistics of two networks are never merged.

    Attributes:
        count: images so far.
        sums: (3, D) sums of the limbs.
        moments: (5, D, D) sums of products of limbs i and j, one matrix for each i + j;
            168 MB for the 2048 features of Inception.
    """

    def __init__(self, size: int, network: str = ""):
        self.network, self.count = network, 0
        self.sums = torch.zeros(LIMBS, size, dtype=torch.float64)
        self.moments = torch.zeros(ORDERS, size, size, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add the features (n, D) of n images.

        Raises:
            ValueError: another shape, values that are not finite or beyond 4096, or more than
                2,097,152 images.
        """
        size = self.sums.shape[1]
        if features.ndim != 2 or features.shape[1] != size:
            raise ValueError(f"features must be (n, {size}), got {tuple(features.shape)}.")
        # Every check comes before the first sum, so a refused batch leaves the statistics as they
        # were.
        rest = features.detach().cpu().double()
        largest = float(rest.abs().max()) if len(rest) else 0.0
        if not largest <= RANGE:  # also where it is NaN
            raise ValueError(f"features must lie in [-{RANGE:g}, {RANGE:g}], got {largest}.")
        self._check_count(self.count + len(rest))

        # A limb is the nearest integer to what the coarser ones left over; both steps are exact.
        limbs = []
        for unit in UNITS:
            limbs.append((rest / unit).round())
            rest = rest - limbs[-1] * unit

        # Products of limbs with one i + j have one unit and share a sum. Their matrix is symmetric
        # once the pair (j, i) is in it, which is the transpose of (i, j).
        self.count += len(rest)
        for i, left in enumerate(limbs):
            self.sums[i] += left.sum(0)
            for j in range(i, LIMBS):
                product = left.T @ limbs[j]
                self.moments[i + j] += product if i == j else product + product.T

    def merge(self, other: FeatureStatistics) -> None:
        """Add what another process has seen.

        Raises:
            ValueError: features of another size or network, or too many images.
        """
        if self.sums.shape != other.sums.shape or self.network != other.network:
            mine, theirs = self.sums.shape[1], other.sums.shape[1]
            raise ValueError(
                f"cannot merge {mine} features of network {self.network!r} with "
                f"{theirs} features of network {other.network!r}."
            )
        self._check_count(self.count + other.count)
        self.count += other.count
        self.sums += other.sums
        self.moments += other.moments

    def gaussian(self) -> Gaussian:
        """Mean and covariance (divided by n - 1).

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}.")
        units = torch.tensor(UNITS, dtype=torch.float64)
        mean = (self.sums * units[:, None]).sum(0) / self.count

        # Move the origin to the mean, rounded to the coarsest step: exact, and without it the
        # difference below would cancel digits where the mean is far larger than the spread.
        origin = (mean / UNITS[0]).round()
        moved = self.moments.clone()
        for j in range(LIMBS):
            product = torch.outer(origin, self.sums[j])
            moved[j] -= product + product.T
        moved[0] += self.count * torch.outer(origin, origin)

        # Sum the orders from the finest to the coarsest.
        second = torch.zeros_like(moved[0])
        for order in reversed(range(ORDERS)):
            second += moved[order] * (RANGE**2 * 2.0 ** (-BITS * (order + 2)))
        # At most half of the coarsest step is left, so this difference cancels next to nothing.
        left = mean - origin * UNITS[0]
        covariance = (second - self.count * torch.outer(left, left)) / (self.count - 1)
        return Gaussian(mean.numpy(), covariance.numpy(), self.count, self.network)

    def save(self, path: str | Path) -> None:
        """Write the sums, to be loaded, updated and merged later, to an .npz file."""
        with Path(path).open("wb") as file:
            np.savez(file, sums=self.sums.numpy(), moments=self.moments.numpy(),
                     count=self.count, network=self.network)  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no sums, or sums of another layout.
        """
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in ("sums", "moments", "count") if name not in file]:
                raise ValueError(f"{path} has no {missing[0]}: these are not running statistics.")
            sums, moments = torch.from_numpy(file["sums"]), torch.from_numpy(file["moments"])
            statistics = cls(sums.shape[-1], str(file["network"]))
            count = int(file["count"])
        if sums.shape != statistics.sums.shape or moments.shape != statistics.moments.shape:
            raise ValueError(
                f"{path}: sums must be (3, D) and moments (5, D, D), "
                f"got {tuple(sums.shape)} and {tuple(moments.shape)}."
            )
        statistics.sums, statistics.moments, statistics.count = sums, moments, count
        return statistics

    @staticmethod
    def _check_count(count: int) -> None:
        if count > MOST_IMAGES:
            raise ValueError(f"statistics are exact for up to {MOST_IMAGES} images, got {count}.")


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). With A = F F' and B = G G' the trace of the
    root is the sum of the singular values of F' G, which stays accurate where covariances of few
    images are singular and SciPy's `sqrtm` needs an offset.

    Raises:
        ValueError: features of different sizes, or of networks that differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"cannot compare {len(a.mean)} features with {len(b.mean)}: not the same network."
        )
    if a.network and b.network and a.network != b.network:
        raise ValueError(f"cannot compare features of network {a.network} and {b.network}.")
    gap = np.square(a.mean - b.mean).sum()
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    # Two equal sets may come out a rounding error below 0.
    return max(float(gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross), 0.0)


def cache_key(data: str, transform: str, network: str) -> str:
    """Name under which statistics are kept: they may be used again only where all three agree.

    Args:
        data: fingerprint of the images.
        transform: what was done to them before the network, size included.
        network: its fingerprint.

    Returns:
        32 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps([data, transform, network]).encode()).hexdigest()[:32]
