"""Codebooks of the shapes that real ones take, for tests of clustering."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
METRICS = ["euclidean", "sqeuclidean", "cosine"]


def codebook(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    """A float32 codebook (n, d) of one of the shapes real ones take."""
    rng = np.random.default_rng(seed)
    if kind == "real":
        return np.load(GOLDEN / "nimblebox-vqvae-512x128.npy")
    rows = rng.standard_normal((n, d))
    if kind == "sphere":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    elif kind == "clustered":
        rows = 0.15 * rows + rng.standard_normal((n // 40, d))[rng.integers(0, n // 40, n)]
    elif kind == "repeated":
        rows[n // 2 :] = rows[rng.integers(0, n // 4, n - n // 2)]
    elif kind == "heavy":
        rows = rng.standard_t(2, (n, d))
    elif kind == "far":
        rows = 1e-3 * rows + 100
    return rows.astype(np.float32)
