"""Cluster maps of codebooks by any clustering method, written whole or not at all."""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import __version__
from ..clustering import METHODS, make
from ..clustering.codebook import as_codebook, choose, normalized
from ..components.cluster_map import ClusterMap


def make_cluster_map(
    codebook: Tensor,
    method: str,
    clusters: int,
    *,
    normalize: bool = False,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> tuple[ClusterMap, np.ndarray]:
    """Cluster a codebook; the map, and the rows (N, d) that were clustered.

    Args:
        codebook: (N, d) stored rows.
        method: a name of `clustering.METHODS`.
        normalize: cluster rows of unit length, as tokenizers with a cosine quantizer see them.
        seed: for the methods that draw random numbers.
        options: the method's own settings, as k-means' `init` and `n_init`.

    Raises:
        ValueError: rows or a number of clusters the method cannot take, or an unknown method.
        MemoryError: not enough memory is available.
    """
    rows = as_codebook(codebook)
    rows = normalized(rows) if normalize else rows
    kind = METHODS[choose("method", method, METHODS)]
    seeded = "random_state" in {field.name for field in fields(kind)}
    random = {"random_state": seed} if seeded else {}
    found = make(method, n_clusters=clusters, **random, **(options or {}))
    found.fit(rows)
    cluster_map = ClusterMap.from_labels(
        found.labels_,
        codebook,
        getattr(found, "children_", None),
        getattr(found, "distances_", None),
        method=f"{method}-normalized" if normalize else method,
    )
    return cluster_map, rows


def check_out(out: str | Path) -> None:
    """Raise a ValueError if `out` holds anything but a cluster map, which `save` would replace."""
    out = Path(out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder.")
    config = out / "config.json"
    known = config.is_file() and json.loads(config.read_text()).get("_class_name") == "ClusterMap"
    if out.is_dir() and any(out.iterdir()) and not known:
        raise ValueError(f"--out {out} holds other files; give a new folder or a cluster map's.")


def save(cluster_map: ClusterMap, out: str | Path, source: str | None = None) -> None:
    """Write a map under a temporary name beside `out`, then put it in place of what was there.

    `source`, whose codebook it is of, goes into provenance.json; of a local path only the name.
    """
    out = Path(out).absolute()
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    cluster_map.save_pretrained(partial)
    if source:
        name = Path(source).name if Path(source).exists() else source
        statement = f"Clusters of the codebook of {name}, made by codeclade {__version__}."
        (partial / "provenance.json").write_text(json.dumps({"statement": statement}, indent=2))
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
