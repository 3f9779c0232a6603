"""The loss of a "cluster_token" model from the logits of one cluster's members alone.

-log p(i) = -log p(c) - log p(i | c) needs, for a position, K cluster logits and those of the
members of the right cluster: O(K + largest cluster) numbers instead of O(N). Same weights and, to
rounding, the same loss and gradients as the dense head.

Shapes: n positions, D width, N ids, K clusters, M members of the largest cluster of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24  # numbers of gathered rows at once: 64 MiB in float32


class SparseClusterToken(nn.Module):
    """Loss and accuracy of a ClusterTokenHead.

    Args:
        cluster_of: (N,) cluster of every id.
        num_clusters: K.
    """

    def __init__(self, cluster_of: Tensor, num_clusters: int):
        super().__init__()
        sizes = cluster_of.bincount(minlength=num_clusters)  # (K,)
        first = sizes.cumsum(0) - sizes  # (K,) where a cluster starts in `members`
        members = cluster_of.argsort(stable=True)  # (N,) sorted by cluster
        place = torch.empty_like(members)  # (N,) of an id among its cluster's members
        place[members] = (
            torch.arange(len(members), device=members.device) - first[cluster_of[members]]
        )
        # Buffers go with the model to its device; checkpoints do not need them.
        self.largest = int(sizes.max())
        for name, value in (
            ("cluster_of", cluster_of.clone()),
            ("sizes", sizes),
            ("first", first),
            ("members", members),
            ("place", place),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, head: nn.Module, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over positions, and the share whose cluster and member are both arg-max.

        Args:
            head: a ClusterTokenHead.
            hidden: (B, T, D) normalized hidden states that predict tokens.
            tokens: (B, T) the right ids.
        """
        # First stage, over all clusters.
        flat, ids = hidden.flatten(0, 1), tokens.flatten()  # (n, D), (n,)
        clusters = self.cluster_of[ids]
        coarse = head.clusters(flat).float()  # (n, K)
        total = F.cross_entropy(coarse, clusters, reduction="sum")
        right = coarse.argmax(-1) == clusters  # (n,)

        # Second stage, in chunks of positions whose clusters are of like size, so that padding is
        # rare. The rows gathered for a chunk are gathered again in the backward pass, not kept.
        weight = head.tokens.weight  # (N, D), with an embedding prior computed once
        sizes = self.sizes[clusters]
        count = max(1, CHUNK // (self.largest * flat.shape[1]))
        for part in sizes.argsort().split(count):
            given = flat[part], weight, ids[part], clusters[part]
            loss, best = checkpoint(self._second_stage, *given, use_reentrant=False)
            total = total + loss
            right[part] &= best
        return total / len(ids), right.float().mean()

    def _second_stage(
        self, hidden: Tensor, weight: Tensor, ids: Tensor, clusters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of -log p(i | c), and whether i is arg-max (n,)."""
        sizes = self.sizes[clusters].unsqueeze(-1)  # (n, 1)
        slots = torch.arange(int(sizes.max()), device=ids.device)  # (M,)
        inside = slots < sizes  # (n, M)
        rows = self.first[clusters].unsqueeze(-1) + slots.where(inside, 0)
        gathered = F.embedding(self.members[rows], weight)  # (n, M, D)
        logits = torch.einsum("nd,nmd->nm", hidden, gathered.to(hidden.dtype)).float()
        logits = logits.masked_fill(~inside, -torch.inf)
        target = self.place[ids]
        return F.cross_entropy(logits, target, reduction="sum"), logits.argmax(-1) == target
