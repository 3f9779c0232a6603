"""One codebook while it trains: usage, running means, restart of dead codes.

Running means (VQ-VAE, arXiv 1711.00937, appendix A.1) replace the gradient of the codebook loss:
every code is the mean of the latents it stood for. All counts are of all processes together.

Shapes: N codebook size, d code width, B images, G token grid side.
"""

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from .dead_codes import CodeUsage, revive_dead_codes
from .tokenizer_losses import Assignment


class RunningMeans:
    """Running counts and sums of the vectors of every code, in float32.

    Args:
        rows: (N, d) the codebook; the means start there, each as if it had been used once.
        decay: of counts and sums, a step.
        unit: rows are scaled to length 1 (a cosine search uses their direction alone).
    """

    def __init__(self, rows: nn.Parameter, decay: float, unit: bool, accelerator: Accelerator):
        self.rows, self.decay, self.unit, self.accelerator = rows, decay, unit, accelerator
        self.sums = rows.detach().float().clone().to(accelerator.device)  # (N, d)
        self.counts = self.sums.new_ones(len(rows))  # (N,)

    @torch.no_grad()
    def update(self, passes: list[Assignment]) -> None:
        """Take in one step; all processes must call it and end with the same codebook."""
        ids = torch.cat([one.ids.flatten() for one in passes])
        vectors = torch.cat([one.vectors.movedim(1, -1).flatten(0, 2) for one in passes])
        counts = ids.bincount(minlength=len(self.counts)).to(self.counts.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors.float())
        self.counts.lerp_(self.accelerator.reduce(counts, "sum"), 1 - self.decay)
        self.sums.lerp_(self.accelerator.reduce(sums, "sum"), 1 - self.decay)

        # Codes that have not been used for long keep their place; dead codes have a restart.
        means = self.sums / self.counts.clamp_min(1e-12).unsqueeze(-1)
        means = F.normalize(means, dim=-1) if self.unit else means
        alive = (self.counts > 1e-6).unsqueeze(-1)
        self.rows.copy_(torch.where(alive, means.to(self.rows.dtype), self.rows))

    @torch.no_grad()
    def restart(self, moved: Tensor) -> None:
        """Count anew for the codes `moved` (n,), from where they are now."""
        self.counts[moved] = 1
        self.sums[moved] = self.rows[moved].float()


class CodebookTraining:
    """Usage of one codebook, its running means if it has them, and its restarts.

    Args:
        name: begins its numbers in logs: "" for the first codebook.
        rows: (N, d) parameter; with running means it is taken from the optimizer.
        unit: rows count by their direction alone.
        decay: of the running means; None: it learns by gradient.
    """

    def __init__(
        self,
        name: str,
        rows: nn.Parameter,
        unit: bool,
        decay: float | None,
        accelerator: Accelerator,
    ):
        self.name, self.rows, self.unit = name, rows, unit
        self.usage = CodeUsage(len(rows), accelerator)
        self.means = None
        if decay is not None:
            rows.requires_grad_(False)
            self.means = RunningMeans(rows, decay, unit, accelerator)
        self.passes: list[Assignment] = []  # of this step

    def add(self, assigned: Assignment) -> None:
        """What one pass used the codes for."""
        self.usage.add(assigned.ids)
        self.passes.append(assigned)

    def update(self) -> None:
        """Move the running means by the passes since `clear`, if there are such means."""
        if self.means is not None:
            self.means.update(self.passes)

    def clear(self) -> None:
        """Forget the passes of a step."""
        self.passes.clear()

    def revive(self, optimizer: torch.optim.Optimizer) -> int:
        """Move codes unused since the last restart onto vectors of the last pass; their number."""
        moved = revive_dead_codes(
            self.rows, optimizer, self.usage, self.passes[-1].vectors, unit=self.unit
        )
        if self.means is not None:
            self.means.restart(moved)
        return len(moved)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"usage": self.usage.state_dict()}
        if self.means is not None:
            state |= {"sums": self.means.sums, "counts": self.means.counts}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.usage.load_state_dict(state["usage"])
        if self.means is not None:
            self.means.sums.copy_(state["sums"])
            self.means.counts.copy_(state["counts"])
