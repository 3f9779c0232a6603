"""Averaged weights that survive sharding: every process averages its own shards.

diffusers' EMAModel, made after the model is sharded; checkpoints hold whole tensors, so that they
load on any number of processes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class AveragedWeights(EMAModel):
    """Exponential moving average of parameters, sharded as they are."""

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """As in the parent class, with one pass over the numbers."""
        parameters = list(parameters)
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        pairs = list(zip(self.shadow_params, parameters, strict=True))
        trained = [pair for pair in pairs if pair[1].requires_grad]
        if trained:
            shadows, now = map(list, zip(*trained, strict=True))
            torch._foreach_lerp_(shadows, now, 1 - self.cur_decay_value)
        for shadow, parameter in pairs:
            if not parameter.requires_grad:
                shadow.copy_(parameter)

    def state_dict(self) -> dict[str, Any]:
        """As in the parent class, with whole tensors; all processes must call it together."""
        state = super().state_dict()
        return state | {"shadow_params": [whole(tensor) for tensor in self.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the parent class; each process keeps its shards of the whole tensors."""
        shards = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [
            like(tensor, shard)
            for tensor, shard in zip(state_dict["shadow_params"], shards, strict=True)
        ]

    def restore(self, parameters) -> None:
        """As in the parent class, back onto the parameters' device."""
        for parameter, kept in zip(parameters, self.temp_stored_params, strict=True):
            parameter.data.copy_(kept.to(parameter.device))
        self.temp_stored_params = None


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; others unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, shard: Tensor) -> Tensor:
    """A whole tensor on the device of `shard`, and sharded as it is."""
    tensor = tensor.to(shard.device, shard.dtype)
    if isinstance(shard, DTensor):
        return distribute_tensor(tensor, shard.device_mesh, shard.placements)
    return tensor.clone()


@contextlib.contextmanager
def averaged_weights(model: nn.Module, averages: EMAModel | None) -> Iterator[None]:
    """The averaged weights in `model` for the length of a with block; None leaves it as it is."""
    if averages is None:
        yield
        return
    averages.store(model.parameters())
    averages.copy_to(model.parameters())
    try:
        yield
    finally:
        averages.restore(model.parameters())


@torch.no_grad()
def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict, whole float32 tensors on the CPU; all processes must call it."""
    found = {}
    for name, value in model.state_dict().items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        found[name] = whole(value).to("cpu", dtype, copy=True)
    return found
