"""Precision, recall, density and coverage of samples from their nearest neighbors in feature space.

Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), k = 3 as in ADM's
evaluator; density and coverage (Naeem et al. 2020, arXiv 2002.09797), whose paper takes k = 5.
ADM's evaluator computes distances in float16 where they are finite, so its last digits differ.

Shapes: n reference images, m samples, D features.
"""

import torch
from torch import Tensor

NEIGHBORS = 3
ROWS, COLUMNS = 1024, 8192  # distances held at once: 64 MiB in float64


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances (n, m) of float64 features (n, D) and (m, D)."""
    # By the binomial formula no (n, m, D) tensor is made. Equal rows may round below 0.
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    return squares.addmm_(a, b.T, alpha=-2).clamp_min_(0)


def neighbor_radii(features: Tensor, neighbors: int = NEIGHBORS) -> Tensor:
    """Squared distance (n,) of every row to its k-th nearest other row, float64.

    Args:
        features: (n, D), n > neighbors.

    Raises:
        ValueError: no neighbor asked for, or too few rows.
    """
    if not 1 <= neighbors < len(features):
        raise ValueError(f"neighbors must be 1 to {len(features) - 1}, got {neighbors}.")
    features = features.double()
    radii = []
    # Column blocks are reduced to the best k + 1 so far: the distances of 50,000 images at once
    # would be 20 GB.
    for rows in features.split(ROWS):
        # The row itself is among the k + 1 nearest, at distance zero.
        nearest = rows.new_empty(len(rows), 0)
        for columns in features.split(COLUMNS):
            nearest = torch.cat([nearest, squared_distances(rows, columns)], 1)
            width = min(neighbors + 1, nearest.shape[1])
            nearest = nearest.topk(width, dim=1, largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def precision_recall(
    reference: Tensor, samples: Tensor, neighbors: int = NEIGHBORS
) -> dict[str, float]:
    """Four numbers on two sets of features, with balls around every image that end at its k-th
    nearest neighbor of the same set.

    precision: share of samples in a ball of the reference. recall: share of the reference in a ball
    of the samples. density: balls of the reference around a sample, over k, on average; may pass 1.
    coverage: share of the reference's balls that hold a sample.

    Precision and recall depend on the numbers of images: compare runs of equal n and m.

    Args:
        reference, samples: (n, D) and (m, D), on one device.

    Raises:
        ValueError: features of different sizes, or too few images.
    """
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise ValueError(
            f"features must be (n, D) and (m, D), "
            f"got {tuple(reference.shape)} and {tuple(samples.shape)}."
        )
    # A squared distance is a small difference of large squares: in float32 rounding would decide
    # who lies inside a ball.
    reference, samples = reference.double(), samples.double()
    reference_radii = neighbor_radii(reference, neighbors)
    sample_radii = neighbor_radii(samples, neighbors)

    # One pass over blocks of the n x m distances; what is kept is one number an image.
    balls = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    covered = torch.zeros_like(recalled)
    for start in range(0, len(reference), ROWS):
        rows = slice(start, start + ROWS)
        for begin in range(0, len(samples), COLUMNS):
            columns = slice(begin, begin + COLUMNS)
            distances = squared_distances(reference[rows], samples[columns])
            inside = distances <= reference_radii[rows, None]
            balls[columns] += inside.sum(0)
            covered[rows] |= inside.any(1)
            recalled[rows] |= (distances <= sample_radii[columns]).any(1)
    return {
        "precision": float((balls > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(balls.double().mean() / neighbors),
        "coverage": float(covered.double().mean()),
    }
