"""Work that several training processes share."""

import torch
from accelerate import Accelerator


def share(accelerator: Accelerator | None) -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) without an accelerator."""
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)


def summed(values: torch.Tensor, accelerator: Accelerator | None) -> list[float]:
    """Sums (n,) over all processes; those of this one without an accelerator."""
    if share(accelerator)[1] > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum")
    return values.tolist()
