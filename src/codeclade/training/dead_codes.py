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
        self.counts = torch.zeros(codebook_size, device=accelerator.device)

    def add(self, ids: Tensor) -> None:
        """Count ids of any shape; every process must call this at the same step."""
        counts = ids.flatten().bincount(minlength=len(self.counts)).to(self.counts.dtype)
        self.counts += self.accelerator.reduce(counts, "sum")

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])


@torch.no_grad()
def revive_dead_codes(
    codebook: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    usage: CodeUsage,
    latents: Tensor,
) -> int:
    """Move every code that was not used onto a random latent of this batch; start counting anew.

    All processes end with the same codebook; the moved rows' optimizer moments restart at zero.

    Args:
        codebook: (N, d); a moved row keeps its length.
        latents: (B, d, G, G) of unit length, this process's.

    Returns:
        Number of codes moved.
    """
    # Where dead codes can go: latents of all processes; never more codes than latents.
    accelerator = usage.accelerator
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).contiguous()
    candidates = accelerator.gather(rows)
    dead = (usage.counts == 0).nonzero().flatten()[: len(candidates)]
    if len(dead):
        # Processes draw different numbers, so the draw of rank 0 goes to all.
        choice = torch.randperm(len(candidates), device=candidates.device)[: len(dead)]
        rows = candidates[choice] + 1e-3 * torch.randn_like(candidates[choice])
        rows = F.normalize(rows, dim=-1) * codebook[dead].norm(dim=-1, keepdim=True)
        if accelerator.num_processes > 1:
            torch.distributed.broadcast(rows, src=0)
        codebook[dead] = rows.to(codebook.dtype)
        for moment in ("exp_avg", "exp_avg_sq"):
            if codebook in optimizer.state:
                optimizer.state[codebook][moment][dead] = 0
    usage.counts.zero_()
    return len(dead)
