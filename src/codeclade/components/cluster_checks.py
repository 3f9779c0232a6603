"""Whether labels are a partition and merges are a tree, said in one sentence where they are not.

Shapes: N codebook size, K clusters, M merges known, numbered as scipy does: merge i makes node
N + i.
"""

import torch
from torch import Tensor

HEIGHT_TOLERANCE = 1e-5  # of the largest height: rounding may swap two equal merges


def check_labels(mapping: Tensor, num_clusters: int) -> None:
    """Raise a ValueError unless mapping (N,) uses every cluster 0..K-1 and nothing else."""
    used = mapping.unique()  # sorted
    if not len(used) or used[0] != 0 or used[-1] != num_clusters - 1 or len(used) != num_clusters:
        ends = f"{int(used[0])}..{int(used[-1])}" if len(used) else "nothing"
        raise ValueError(
            f"mapping must use every cluster 0..{num_clusters - 1}, but has {len(used)} different "
            f"numbers, {ends}."
        )


def check_tree(merges: Tensor, heights: Tensor, count: int) -> None:
    """Raise a ValueError unless merges (M, 2) and heights (M,) are a tree over `count` leaves."""
    steps = len(merges)
    # Both children exist already, and no node is merged a second time: that is all a tree needs.
    made = torch.arange(count, count + steps, device=merges.device)
    wrong = ((merges < 0) | (merges >= made.unsqueeze(-1))).any(-1).nonzero()
    if len(wrong):
        step = int(wrong[0])
        raise ValueError(
            f"the merge tree is damaged: merge {step} joins {merges[step].tolist()}, but nodes "
            f"0..{count + step - 1} are there."
        )
    if len(merges.flatten().unique()) != 2 * steps or steps >= count:
        raise ValueError("the merge tree is damaged: a node is merged more than once.")
    # `cut` takes merges from the front, so these must be the lowest.
    if not heights.isfinite().all():
        raise ValueError("the merge tree is damaged: not all heights are finite.")
    slack = HEIGHT_TOLERANCE * float(heights.abs().max()) if steps else 0.0
    if (heights < -slack).any() or (heights.diff() < -slack).any():
        raise ValueError(
            "the merge tree is damaged: heights must be 0 or more, in ascending order."
        )


def tree_labels(merges: Tensor, count: int, num_clusters: int) -> Tensor:
    """Labels (N,) of a tree cut at K clusters, numbered by their smallest member."""
    # The first N - K merges, in order of height, leave K trees; each is named by its smallest id,
    # so that numbering does not depend on the order in which a method merged.
    parent = list(range(count))
    node = list(range(count + len(merges)))  # smallest member of every tree node
    for step, (a, b) in enumerate(merges[: count - num_clusters].tolist()):
        low, high = sorted((node[a], node[b]))
        node[count + step], parent[high] = low, low
    for i in range(count):  # parents are smaller, so one ascending pass finds all roots
        parent[i] = parent[parent[i]]
    return torch.unique(torch.tensor(parent), return_inverse=True)[1]


def check_cut(mapping: Tensor, merges: Tensor, num_clusters: int) -> None:
    """Raise a ValueError unless mapping (N,) is the cut of its tree, in any numbering.

    A tree that ends above K clusters says nothing about them.
    """
    count = len(mapping)
    if len(merges) < count - num_clusters or not len(merges):
        return
    cut = tree_labels(merges, count, num_clusters)
    pairs = cut * num_clusters + mapping.cpu()  # as many pairs as clusters: each meets one other
    if len(pairs.unique()) != num_clusters:
        raise ValueError(
            f"mapping is not its merge tree cut at {num_clusters} clusters; one of them is damaged."
        )
