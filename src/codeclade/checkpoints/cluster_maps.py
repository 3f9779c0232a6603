"""Cluster maps of codebooks by any clustering method, written whole or not at all."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import __version__
from ..clustering import METHODS, cut, make
from ..clustering.codebook import as_codebook, choose, normalized
from ..components.cluster_map import ClusterMap
from ..components.weight_files import read_json, shortened
from ..data.atomic import new_folder, write_json
from ..data.records import Provenance

# What a folder that `save_cluster_map` wrote holds, and nothing else.
FILES = {"config.json", "diffusion_pytorch_model.safetensors", Provenance.FILE}

LARGEST = float(np.finfo(np.float32).max)  # maps store heights and a fingerprint as float32


def make_cluster_map(
    codebook: Tensor,
    method: str,
    clusters: int,
    *,
    normalize: bool = False,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    weights: np.ndarray | None = None,
) -> tuple[ClusterMap, np.ndarray]:
    """Cluster a codebook; the map, and the rows (N, d) that were clustered.

    Args:
        codebook: (N, d) stored rows.
        method: a name of `clustering.METHODS`.
        normalize: cluster rows of unit length, as tokenizers with a cosine quantizer see them.
        seed: for the methods that draw random numbers.
        options: the method's own settings, as k-means' `init` and `n_init`.
        weights: (N,) of the rows, for methods of average linkage.

    Raises:
        ValueError: rows or a number of clusters the method cannot take, or an unknown method.
        MemoryError: not enough memory is available.
    """
    # What the map could not store is refused now, not after hours of clustering.
    rows = as_codebook(codebook)
    if np.abs(rows).max() > LARGEST:
        raise ValueError(f"codebook rows must be within float32's range, up to {LARGEST:.3g}")
    rows = normalized(rows) if normalize else rows
    # The map carries a fingerprint of the codebook, which a tokenizer is later compared with: so it
    # is made of the stored rows, not of those of unit length. Only trees have merges.
    found = cluster_rows(rows, method, clusters, seed, options, weights)
    cluster_map = ClusterMap.from_labels(
        found.labels_,
        codebook,
        getattr(found, "children_", None),
        getattr(found, "distances_", None),
        method=method
        + ("-normalized" if normalize else "")
        + ("" if weights is None else "-weighted"),
    )
    return cluster_map, rows


def cluster_rows(
    rows: np.ndarray,
    method: str,
    clusters: int,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    weights: np.ndarray | None = None,
) -> Any:
    """A fitted clusterer of rows (N, d), with `labels_` and, where it makes a tree, `children_`
    and `distances_`; arguments and errors as of `make_cluster_map`."""
    kind = METHODS[choose("method", method, METHODS)]
    seeded = "random_state" in {field.name for field in fields(kind)}
    random = {"random_state": seed} if seeded else {}
    clusterer = make(method, n_clusters=clusters, **random, **(options or {}))
    return clusterer.fit(rows) if weights is None else clusterer.fit(rows, weights=weights)


def cut_tree(children: np.ndarray, clusters: int) -> np.ndarray:
    """Labels (N,) of a tree (N - 1, 2) cut into clusters."""
    return cut(children, clusters)


def check_out(out: str | Path) -> str | None:
    """Make sure that a cluster map can be saved as `out`: new, empty, or another map's folder.

    Called before the clustering, which can take hours.

    Returns:
        What the new map will replace, in words; None where nothing is there.

    Raises:
        ValueError: a link, a file, or a folder that holds anything else.
    """
    out = Path(out)
    # The map is written beside `out` and renamed, which would replace a link and not its target.
    if out.is_symlink():
        raise ValueError(f"--out {out} is a symbolic link; give a folder.")
    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder.")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not there:
        return None
    # A map may be made anew in its own folder. `new_folder` refuses any other folder as well, but
    # only when the clustering is done.
    config = out / "config.json"
    before = read_json(config) if config.is_file() else {}
    if before.get("_class_name") != "ClusterMap" or there - FILES:
        raise ValueError(f"--out {out} holds other files; give a new folder or a cluster map's.")
    method, clusters = shortened(before.get("method")), shortened(before.get("num_clusters"))
    return f"the cluster map in {out} ({method}, {clusters} clusters)"


def save_cluster_map(cluster_map: ClusterMap, out: str | Path, source: str) -> None:
    """Write a map and where it comes from; a map that is there stays until the new one is whole.

    Args:
        cluster_map: the map.
        out: a folder that `check_out` accepts; its parents are made.
        source: whose codebook it is of, for provenance.json; of a local path only the name.
    """
    out = Path(out).absolute()
    # Again, since the folder may have been filled while the clustering ran.
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    name = Path(source).name if Path(source).exists() else source
    statement = f"Clusters of the codebook of {name}, made by codeclade {__version__}."
    with new_folder(out, overwrite=True) as folder:
        cluster_map.save_pretrained(folder)
        write_json(folder / Provenance.FILE, Provenance(statement=statement).to_json(), indent=2)
