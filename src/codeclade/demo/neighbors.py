"""Distances between clusters: in the merge tree and in the codebook."""

import math

import torch

from .. import ClusterMap


def join_heights(cut: ClusterMap, cluster: int) -> list[float | None]:
    """Height at which every cluster joins `cluster` in the tree; None where it never does.

    The cluster's own entry is 0.
    """
    # The cut undid the last merges of the tree; replaying them says where clusters join.
    codes, count, mapping = cut.codebook_size, cut.num_clusters, cut.mapping.tolist()
    merges, heights = cut.merges.tolist(), cut.heights.tolist()
    found: list[float | None] = [None] * count
    found[cluster] = 0.0
    # A node made before the cut lies within one cluster, which any code below it tells.
    leaf = list(range(codes))  # any code below every node
    for a, _ in merges:
        leaf.append(leaf[a])
    # A group is taken out when it merges, so that each cluster gets its height once, where its
    # group meets the one of `cluster`.
    groups: dict[int, list[int]] = {}  # clusters below the nodes made since the cut
    own = None  # the node that holds `cluster`
    for step in range(codes - count, len(merges)):
        node, children = codes + step, merges[step]
        sides = [groups.pop(child, None) or [mapping[leaf[child]]] for child in children]
        for child, side, other in zip(children, sides, sides[::-1], strict=True):
            if child == own or side == [cluster]:
                own = node
                for joined in other:
                    found[joined] = heights[step]
                break
        # The smaller list goes into the larger, so that each of the K clusters moves at most log2 K
        # times: O(K log K) in all.
        small, large = sorted(sides, key=len)
        large.extend(small)
        groups[node] = large
    return found


def nearest_clusters(
    cut: ClusterMap, codebook: torch.Tensor, cluster: int, count: int
) -> list[tuple[int, float, float | None]]:
    """The `count` nearest clusters: number, distance of the mean codes, height of their joining."""
    means = torch.zeros(cut.num_clusters, codebook.shape[1])
    means.index_add_(0, cut.mapping, codebook)
    means /= cut.sizes.unsqueeze(1)
    distances = (means - means[cluster]).norm(dim=1)
    distances[cluster] = math.inf
    heights = join_heights(cut, cluster)
    order = distances.argsort()[: min(count, cut.num_clusters - 1)].tolist()
    return [(other, distances[other].item(), heights[other]) for other in order]
