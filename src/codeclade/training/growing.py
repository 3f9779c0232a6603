"""Growing vocabulary: a generator learns coarse clusters first, which split as training goes on.

Ours. In a stage with clusters c of sizes |c| all rows of a cluster are equal, in the embedding and
in the output layer, so the model reads and predicts clusters:

    p(i | h) = exp(W_c(i) h) / sum_j exp(W_c(j) h) = p(c | h) / |c|,   p(c | h) ~ |c| exp(W_c h)

which is a coarse model with the fixed bias ln |c|. When clusters split, their parts start with the
same rows, and the biases of the parts add up to that of the whole: the function stays exactly as it
was. At single entries the bias is ln 1 = 0, so a finished model is an ordinary one and there is
nothing to fold. The loss is the likelihood of entries throughout and has no step at a split.

Rows stay equal because they get equal gradients, the mean over their cluster. Adam's moments and
averaged weights are then equal too, and a split changes nothing but the gradients: what stage a
step has follows from its number alone.

Shapes: V vocabulary, D width, L stages.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..components.schemes import SCHEMES, scheme_class
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from .embedding_priors import tree_cuts

ALL = "all"  # as many clusters as there are entries


def growth_steps(grow: dict) -> dict[str, Any]:
    """The setting `grow` with steps as text, as JSON keeps them.

    Raises:
        ValueError: steps or numbers of clusters that do not rise from step 0 on.
    """
    steps, counts = list(grow), list(grow.values())
    try:
        rising = [int(step) for step in steps]
        sizes = [int(count) for count in counts if count != ALL]
    except (TypeError, ValueError):
        rising, sizes = [-1], []
    # Only the last stage may have all: a vocabulary that is whole grows no further.
    ends = counts[:-1].count(ALL) == 0
    if grow and not (
        ends
        and rising[0] == 0
        and rising == sorted(set(rising))
        and sizes == sorted(set(sizes))
        and min(sizes, default=1) >= 1
    ):
        raise ValueError(
            f"grow is {grow}; it must give steps from 0 on with ever more clusters, such as "
            "{0: 512, 1000: 1024, 2000: all}."
        )
    # As JSON keeps it, so that a checkpoint's recipe equals the one that is given again.
    return {
        str(step): count if count == ALL else int(count)
        for step, count in zip(rising, counts, strict=True)
    }


class Growth:
    """The stages of one run.

    Args:
        grow: clusters (or "all") by step, as `growth_steps` gives it.
        config: of the generator.
        rows: (V, d) vectors of its entries; their merge tree is cut.

    Raises:
        ValueError: a scheme of several tables, or a last stage that is not the whole vocabulary.
    """

    def __init__(self, grow: dict[str, Any], config: CodecladeConfig, rows: np.ndarray):
        able = [name for name, scheme in SCHEMES.items() if len(scheme.tables) == 1]
        if config.scheme not in able:
            raise ValueError(f"grow is of schemes {', '.join(able)}, not {config.scheme!r}.")
        size = len(rows)
        # Stages by step; the last one is the whole vocabulary.
        self.steps = [int(step) for step in grow]
        self.counts = [size if count == ALL else count for count in grow.values()]
        if self.counts[-1] != size or self.counts != sorted(set(self.counts)):
            raise ValueError(
                f"grow has {', '.join(map(str, self.counts))} clusters; it must end with all "
                f"{size}, and with fewer before."
            )
        # Cuts of one tree: each cluster of a stage is a union of clusters of the next one.
        self.tables = next(iter(scheme_class(config.scheme).tables.values()))
        self.cuts = torch.cat([tree_cuts(rows, self.counts[:-1]), torch.arange(size)[None]])
        self.stage: int | None = None

    @torch.no_grad()
    def add_to(self, model: CodecladeTransformer, fresh: bool) -> None:
        """Let the tables of a model grow, in place: rows of every first cluster become equal.

        Args:
            fresh: weights were just drawn, and one row stands for its cluster; False: the mean.
        """
        first = self.cuts[0]
        for name in self.tables:
            module = model.get_submodule(name)
            weight = module.weight  # (V, D)
            if fresh:
                # Any row will do; a mean of random ones would be shorter than they are.
                places = torch.arange(len(first)).flip(0)
                chosen = torch.empty_like(first).scatter_(0, first.flip(0), places)
                weight.copy_(weight[chosen[first]])
            else:
                weight.copy_(cluster_means(weight, first, first.bincount(minlength=len(first))))
            shared = SharedRows(len(first)).to(weight.device)
            shared.use(first)
            parametrize.register_parametrization(module, "weight", shared)

    def enter(self, model: nn.Module, step: int) -> int | None:
        """Share gradients as step `step`, counted from 0, wants it.

        Returns:
            Clusters of a stage that starts with this step, else None.
        """
        stage = sum(start <= step for start in self.steps) - 1
        if stage != self.stage:
            self.stage = stage
            for module in model.modules():
                if isinstance(module, SharedRows):
                    module.use(self.cuts[stage])
        return self.counts[stage] if step in self.steps else None


class SharedRows(nn.Module):
    """Parametrization of a table (V, D): the same table; its gradient is shared in clusters."""

    cluster_of: Tensor  # (V,)
    sizes: Tensor  # (V,) of the clusters, 0 where there are fewer

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("cluster_of", torch.arange(size), persistent=False)
        self.register_buffer("sizes", torch.ones(size, dtype=torch.int64), persistent=False)

    def use(self, cluster_of: Tensor) -> None:
        """Share in these clusters (V,) from now on."""
        self.cluster_of.copy_(cluster_of)
        self.sizes.copy_(cluster_of.bincount(minlength=len(cluster_of)))

    def forward(self, table: Tensor) -> Tensor:
        return _SharedGradient.apply(table, self.cluster_of, self.sizes)


class _SharedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, cluster_of: Tensor, sizes: Tensor) -> Tensor:
        ctx.save_for_backward(cluster_of, sizes)
        return table.view_as(table)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return cluster_means(gradient, *ctx.saved_tensors), None, None


def cluster_means(rows: Tensor, cluster_of: Tensor, sizes: Tensor) -> Tensor:
    """Every row (V, D) replaced by the mean over its cluster.

    Args:
        cluster_of: (V,) below V.
        sizes: (V,) of the clusters.
    """
    sums = torch.zeros_like(rows).index_add(0, cluster_of, rows)
    return (sums / sizes.clamp_min(1).unsqueeze(-1).to(rows.dtype))[cluster_of]
