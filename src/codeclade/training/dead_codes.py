"""Dead codes: codebook rows that no latent is nearest to, and their restart.

Such rows get no gradient from the codebook loss and stay unused. They are moved onto latents of
the current batch, as in the random restarts of Jukebox (arXiv 2005.00341).

Shapes: N codebook size, d code width, B batch, G token grid side.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn


class CodeUsage:
    """How often every code was used since the last restart, by all processes together.

    It is no buffer of the model: DistributedDataParallel overwrites buffers with rank 0's before
    every forward pass, and the codes that only other ranks use would look dead.
    """

    def __init__(self, codebook_size: int, accelerator: Accelerator):
        self.accelerator = accelerator
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=accelerator.device)
        self.recent = torch.zeros_like(self.counts)  # since the last `statistics`

    def add(self, ids: Tensor) -> None:
        """Count ids of any shape; every process must call this at the same step."""
        counts = ids.flatten().bincount(minlength=len(self.counts))
        counts = self.accelerator.reduce(counts, "sum")
        self.counts += counts
        self.recent += counts

    def statistics(self) -> dict[str, float]:
        """Share of the codes used and perplexity since the last call, and codes dead by now."""
        found = usage_statistics(self.recent) | {"dead": int((self.counts == 0).sum())}
        self.recent.zero_()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])
        self.recent.copy_(state["recent"])


def usage_statistics(counts: Tensor) -> dict[str, float]:
    """Of counts (N,) of codes: "usage", the share that occurs, and "perplexity", exp(entropy)."""
    p = counts[counts > 0].double() / counts.sum()
    return {"usage": len(p) / len(counts), "perplexity": (-(p * p.log()).sum()).exp().item()}


@torch.no_grad()
def revive_dead_codes(
    codebook: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    usage: CodeUsage,
    vectors: Tensor,
    unit: bool = True,
) -> Tensor:
    """Move every code that was not used onto a random vector of this batch; start counting anew.

    All processes end with the same codebook; the moved rows' optimizer moments restart at zero.

    Args:
        codebook: (N, d).
        vectors: (B, d, G, G), this process's, that codes may stand for.
        unit: vectors have length 1, and a moved row keeps its own length.

    Returns:
        The codes moved (n,).
    """
    # Where dead codes can go: vectors of all processes; never more codes than vectors.
    accelerator = usage.accelerator
    rows = vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1]).contiguous()
    candidates = accelerator.gather(rows)
    dead = (usage.counts == 0).nonzero().flatten()[: len(candidates)]
    if len(dead):
        # Processes draw different numbers, so the draw of rank 0 goes to all.
        choice = torch.randperm(len(candidates), device=candidates.device)[: len(dead)]
        rows = candidates[choice] + 1e-3 * torch.randn_like(candidates[choice])
        if unit:
            rows = F.normalize(rows, dim=-1) * codebook[dead].norm(dim=-1, keepdim=True)
        if accelerator.num_processes > 1:
            torch.distributed.broadcast(rows, src=0)
        codebook[dead] = rows.to(codebook.dtype)
        for moment in ("exp_avg", "exp_avg_sq"):
            if codebook in optimizer.state:
                optimizer.state[codebook][moment][dead] = 0
    usage.counts.zero_()
    return dead
