"""ClusterMap: which cluster every codebook id belongs to, and the merge tree it was cut from.

Made by codeclade.clustering, saved and loaded like every component. MASC (arXiv 2510.04220) and
DCPE (arXiv 2508.10719) train the generator on clusters and draw a uniform random member afterwards.

Shapes: N codebook size, K clusters, d code width, M merges known (N-1 for a full tree, else 0).
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .cluster_checks import check_cut, check_labels, check_tree, tree_labels
from .fields import Count, CountOrZero, Width
from .loading import StrictLoading

SKETCH_SIZE = 16
SKETCH_TOLERANCE = 0.02  # bfloat16 storage moves a sketch by under 0.007, another codebook by ~0.7


def codebook_sketch(codebook: Tensor) -> Tensor:
    """Fingerprint (16,) of a codebook (N, d): fixed projections of it, relative to its norm.

    Unlike a hash it survives storage in bfloat16 or float16, which changes every number a little.
    """
    flat = codebook.detach().double().cpu().flatten()
    # Frequencies spread by the golden ratio: no two of the 16 sums weigh the codes alike.
    position = torch.arange(1, flat.numel() + 1, dtype=torch.float64)
    golden_ratio = 0.6180339887498949
    sketch = [
        (flat * torch.cos(2 * torch.pi * (position * golden_ratio * (j + 1) % 1) + j)).sum()
        for j in range(SKETCH_SIZE)
    ]
    return (torch.stack(sketch) / flat.norm().clamp_min(1e-30)).float()


class ClusterMap(StrictLoading, ModelMixin, ConfigMixin):
    """Ids to clusters and back.

    Build one with `ClusterMap.from_labels`; the constructor only allocates.

    Args:
        codebook_size: N.
        num_clusters: K.
        codebook_dim: d.
        num_merges: M merges stored in `merges`, in order of height.
        method: name of the clustering method, for the reader.

    Buffers: `mapping` (N,) int64; `sketch` (16,), the codebook's fingerprint; `merges` (M, 2)
    int64 and `heights` (M,) float32 as in scipy's linkage matrix.
    """

    _keep_in_fp32_modules = ["heights"]  # noqa: RUF012 (diffusers reads a list)

    mapping: Tensor
    sketch: Tensor
    merges: Tensor
    heights: Tensor

    @register_to_config
    def __init__(
        self,
        codebook_size: Count,
        num_clusters: Count,
        codebook_dim: Width,
        num_merges: CountOrZero = 0,
        method: str = "masc",
    ):
        super().__init__()
        self.register_buffer("mapping", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("sketch", torch.zeros(SKETCH_SIZE))
        self.register_buffer("merges", torch.zeros(num_merges, 2, dtype=torch.int64))
        self.register_buffer("heights", torch.zeros(num_merges))
        self._members = None

    @classmethod
    def from_labels(
        cls,
        labels,
        codebook: Tensor,
        children=None,
        heights=None,
        method: str = "masc",
    ) -> "ClusterMap":
        """A map from cluster labels (N,) of the rows of `codebook` (N, d).

        Args:
            labels: integers 0..K-1, every cluster used.
            codebook: the stored rows of the VQModel (`vq_model.codebook`).
            children: (M, 2) merges, numbered as scipy does; heights: (M,) their distances.

        Raises:
            ValueError: labels of another length, negative, or with a cluster left empty, or merges
                that are no tree.
        """
        # Checked before anything is made: a gap in the labels would be a cluster without a member,
        # and show only when that cluster is drawn from.
        labels = torch.as_tensor(labels).to(torch.int64)
        codebook = torch.as_tensor(codebook).detach().float().cpu()
        if labels.shape != codebook.shape[:1]:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, but there are {len(codebook)} codes."
            )
        num_clusters = int(labels.max()) + 1
        if labels.min() < 0 or len(labels.unique()) != num_clusters:
            raise ValueError(f"labels must use every cluster from 0 to {num_clusters - 1}.")
        num_merges = 0 if children is None else len(children)
        # Copied into buffers, not assigned, so that dtypes and the state dict's names stay fixed.
        new = cls(
            codebook_size=len(codebook),
            num_clusters=num_clusters,
            codebook_dim=codebook.shape[1],
            num_merges=num_merges,
            method=method,
        )
        new.mapping.copy_(labels)
        new.sketch.copy_(codebook_sketch(codebook))
        if num_merges:
            new.merges.copy_(torch.as_tensor(children))
            new.heights.copy_(torch.as_tensor(heights))
            check_tree(new.merges, new.heights, new.codebook_size)
        return new

    def check_loaded(self) -> None:
        """Raise a ValueError unless labels and merge tree are whole, and belong together."""
        if self.mapping.is_meta:
            return
        check_labels(self.mapping, self.num_clusters)
        check_tree(self.merges, self.heights, self.codebook_size)
        check_cut(self.mapping, self.merges, self.num_clusters)

    def extra_repr(self) -> str:
        """What `repr` shows: K of N, how they were found, and whether the tree is there."""
        merges = len(self.merges)
        tree = f"tree of {merges:,} merges" if merges else "no tree"
        return f"{self.num_clusters:,} clusters of {self.codebook_size:,} codes, " + (
            f"method {self.config['method']}, {tree}"
        )

    @property
    def num_clusters(self) -> int:
        return self.config["num_clusters"]

    @property
    def codebook_size(self) -> int:
        return self.config["codebook_size"]

    @property
    def dtype(self) -> torch.dtype:
        """Of the sketch, the one buffer that follows casts (pipelines ask every component)."""
        return self.sketch.dtype

    def _apply(self, fn, recurse=True):
        # Heights order the tree; a cast to bfloat16 would create ties that were never there.
        heights = self.heights
        super()._apply(fn, recurse)
        self.heights = heights.to(self.mapping.device)
        self._members = None
        return self

    def to_clusters(self, ids: Tensor) -> Tensor:
        """Cluster of every id; any shape, any integer dtype, on the device of the ids."""
        return self.mapping[ids.to(self.mapping.device).long()].to(ids.device)

    def _member_table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids sorted by cluster (N,), first position (K,) and size (K,) of every cluster."""
        # Made anew when `mapping` is written to in place, which loading and `cut` do.
        if self._members is None or self._members[3] != self.mapping._version:
            sizes = self.mapping.bincount(minlength=self.num_clusters)
            order = self.mapping.argsort(stable=True)
            first = sizes.cumsum(0) - sizes
            self._members = order, first, sizes, self.mapping._version
        return self._members[:3]

    @property
    def sizes(self) -> Tensor:
        """Number of members (K,) of every cluster."""
        return self._member_table()[2]

    def members(self, cluster: int) -> Tensor:
        """Ids of one cluster, ascending.

        Raises:
            ValueError: a cluster outside 0..K-1.
        """
        if not 0 <= cluster < self.num_clusters:
            raise ValueError(f"cluster {cluster} is outside 0..{self.num_clusters - 1}.")
        order, first, sizes = self._member_table()
        return order[first[cluster] : first[cluster] + sizes[cluster]]

    def draw_members(
        self,
        clusters: Tensor,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """A uniform random member id for every cluster id (MASC's and DCPE's default decoding).

        Args:
            clusters: any shape, int64.
            generator: source of randomness; or
            uniforms: numbers in [0, 1) of the same shape, instead of a generator.
        """
        if uniforms is None:
            device = generator.device if generator is not None else clusters.device
            uniforms = torch.rand(clusters.shape, generator=generator, device=device)
        order, first, sizes = self._member_table()
        # One table look-up for all tokens. The clamp is for products that round up to the size.
        which = clusters.to(order.device).long()
        size = sizes[which]
        offset = (uniforms.to(size.device) * size).long().clamp_max(size - 1)
        return order[first[which] + offset].to(clusters.device)

    def cut(self, num_clusters: int) -> "ClusterMap":
        """The map of the same tree cut at another number of clusters, numbered by smallest member.

        Raises:
            ValueError: a map without tree, or a number the tree cannot give.
        """
        # A tree may stop early; below its last merge there is nothing to cut.
        count, merges = self.codebook_size, len(self.merges)
        if not merges:
            raise ValueError("this map holds no merge tree; cluster with a tree method to cut it.")
        if not count - merges <= num_clusters <= count:
            raise ValueError(
                f"num_clusters={num_clusters} is outside {count - merges}..{count} of this tree."
            )
        labels = tree_labels(self.merges, count, num_clusters)
        about = self.config["codebook_dim"], merges, self.config["method"]
        new = ClusterMap(count, num_clusters, *about)
        new.mapping.copy_(labels)
        # The codebook and the tree are the same, so the new map can be cut again.
        for name in ("sketch", "merges", "heights"):
            getattr(new, name).copy_(getattr(self, name))
        return new

    def matches(self, codebook: Tensor) -> bool:
        """Whether `codebook` (N, d) is the one this map was made from, up to storage precision."""
        shape = (self.codebook_size, self.config["codebook_dim"])
        if tuple(codebook.shape) != shape:
            return False
        gap = codebook_sketch(codebook) - self.sketch.float().cpu()
        return bool(gap.abs().max() < SKETCH_TOLERANCE)
