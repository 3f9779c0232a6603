"""Models that several processes share: FSDP2 leaves every process a part of every weight.

Copies of the whole model on all processes (DDP) need nothing of this.
"""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..data.codes import Codes
from .processes import share, summed

UNFIT = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_launch(accelerator: Accelerator) -> None:
    """Raise a ValueError unless a training loop works as this process was launched."""
    way = accelerator.distributed_type
    if way in UNFIT:
        raise ValueError(
            f"accelerate launched {way.value}; training works with copies of the model on all "
            "processes (the default of accelerate launch) or with FSDP of version 2."
        )
    if way == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("accelerate launched FSDP of version 1; launch with --fsdp_version 2.")
    # Batches are divided by all processes, so each must have images of its own.
    sizes = accelerator.parallelism_config
    if sizes is not None and sizes.non_data_parallel_size > 1:
        raise ValueError(
            f"accelerate launched {sizes.non_data_parallel_size} processes that share every image "
            "(tensor, context or sequence parallel); training divides batches alone."
        )


def check_precision(precision: str) -> None:
    """Raise a ValueError for float16 on a processor, where its gradients cannot be scaled."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if precision == "fp16" and on_cpu:
        raise ValueError(
            "mixed_precision is 'fp16', which trains on a GPU alone; on this processor it must be "
            "bf16 or no."
        )


def check_whole(accelerator: Accelerator, stage: str) -> None:
    """Raise a ValueError where accelerate would share out the weights of a stage that can't be."""
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            f"accelerate launched FSDP, but a {stage} is trained whole on every process; launch "
            "without --use_fsdp."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds parts of the weights alone."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextlib.contextmanager
def callable_parts(model: nn.Module) -> Iterator[None]:
    """Parts of a prepared model can be called by themselves in the with block.

    FSDP2 brings weights together as the forward call of the module that it wrapped begins. Blocks
    are wrapped by themselves; all others belong to the whole model, which a call of a part passes
    by. No state dict is whole inside.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def even_batches(
    codes: Codes, batch_size: int, accelerator: Accelerator | None
) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
    """Batches of first views, this process's share, and whether they count.

    A sharded model needs all processes for a pass, so all get equally many batches: one that has
    no more images gets the first of all once more, which does not count.

    Args:
        batch_size: images at most.
        accelerator: its processes share the images; None: this process takes all.
    """
    spare = next(codes.first_views(1))
    batches = codes.first_views(batch_size, *share(accelerator))
    while True:
        batch = next(batches, None)
        (left,) = summed(torch.tensor([batch is not None], dtype=torch.int64), accelerator)
        if not left:
            return
        yield (spare, False) if batch is None else (batch, True)
