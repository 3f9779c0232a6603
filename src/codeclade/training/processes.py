"""Work that several training processes share."""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env


def all_processes() -> PartialState:
    """The processes of this launch, for work without a model to train; one where none launched."""
    # accelerate asks for gloo by this argument alone; machines without CUDA have nothing else.
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    without = launched and not torch.cuda.is_available()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or without)


def share(accelerator: Accelerator | None) -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) without an accelerator."""
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)


def summed(values: torch.Tensor, accelerator: Accelerator | None) -> list[float]:
    """Sums (n,) over all processes; those of this one without an accelerator."""
    if share(accelerator)[1] > 1:
        values = accelerator.reduce(values.to(accelerator.device), "sum")
    return values.tolist()
