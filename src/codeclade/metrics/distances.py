"""Distances between two sets of image features: Fréchet distance and KID.

For sets too large to hold, `statistics` has the Fréchet distance of running sums.
"""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of Gaussians fitted to features (n, D) and (m, D) (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A and B, in float64. The trace
    of the root is the sum of the singular values of the product of the centered, scaled features.
    """
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    # Many images: the triangular factor has the same covariance in D rows.
    a, b = (torch.linalg.qr(x).R if len(x) > x.shape[1] else x for x in (a, b))
    # The squared singular values of a b' are the eigenvalues of (a'a)(b'b), so no matrix root is
    # taken: that of a singular product (fewer images than features) is unstable.
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float(gap + a.square().sum() + b.square().sum() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the cubic kernel (x.y / D + 1)^3 (KID, Binkowski et al. 2018)."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values = kernel(x, x)
        # An image is more like itself than like any other; its own pairs would bias the mean.
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def kernel_distance_subsets(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID as published (Binkowski et al. 2018, arXiv 1801.01401): mean and standard deviation of
    `subset_distances`."""
    values = subset_distances(a, b, subsets, size, seed)
    return float(values.mean()), float(values.std(correction=0))


def subset_distances(
    a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Tensor:
    """`kernel_distance` (subsets,) of random subsets of both sets, drawn without replacement.

    The memory is that of three kernels of size x size, however many images there are.

    Args:
        a, b: (n, D) and (m, D).

    Raises:
        ValueError: no subset, or one larger than a set or below 2 images.
    """
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"KID needs at least 1 subset of 2 to {min(len(a), len(b))} images, "
            f"got {subsets} of {size}."
        )
    # Drawn on the CPU, so that a seed means the same subsets on every device.
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        some, others = (
            torch.randperm(len(x), generator=generator)[:size].to(x.device) for x in (a, b)
        )
        values.append(kernel_distance(a[some], b[others]))
    return torch.tensor(values, dtype=torch.float64)
