"""Whether the numbers of a model that was just loaded are numbers."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def check_finite(model: nn.Module) -> None:
    """Raise a ValueError that names the first floating-point tensor with NaN or infinity.

    One pass without copies, and one synchronization a device. Quantized tensors, and those that
    lie on disk or are not there yet (meta), are left out.
    """
    names: dict[torch.device, list[str]] = {}
    ends: dict[torch.device, list[Tensor]] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        plain = type(tensor.data) in (Tensor, nn.Parameter) and not tensor.is_meta
        if not plain or not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach()
        # Minimum and maximum hand NaN on; float8 has neither.
        low, high = (values if values.element_size() > 1 else values.float()).aminmax()
        names.setdefault(tensor.device, []).append(name)
        ends.setdefault(tensor.device, []).append(low.isfinite() & high.isfinite())
    for device, flags in ends.items():
        finite = torch.stack(flags)
        if not finite.all():
            name = names[device][int((~finite).nonzero()[0])]
            raise ValueError(
                f"{type(model).__name__} holds numbers that are not finite: {name}, "
                f"{str(_dtype(model, name)).removeprefix('torch.')}."
            )


def _dtype(model: Any, name: str) -> torch.dtype:
    return dict(chain(model.named_parameters(), model.named_buffers()))[name].dtype
