"""A second device without a second device: CPU arithmetic whose tensors do not mix with the CPU's.

`with simulated():` makes `DEVICE` usable like a GPU. Its tensors are plain CPU tensors; that they
are on it is written down by their storage, so views, parameters and `.data` carry it along. What
CUDA refuses is refused here too: operations on tensors of both devices (but for single numbers and
indices from the CPU), `numpy()`, and random numbers from a generator of the other device.

What it cannot show: streams, kernels, memory, dtypes that a GPU lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from codeclade.components.heads import neighbor_table

DEVICE = torch.device(
    "maia", 0
)  # a name that torch knows and for which no library has a special case
CPU = torch.device("cpu")
AUTOMATIC = {"copy_", "_to_copy"}  # between devices by nature
WHERE, ON_CPU = Tensor.device.__get__, Tensor.is_cpu.__get__
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index"}  # take indices from the CPU


class Placement:
    """Which storages are on the simulated device."""

    def __init__(self):
        # The storages themselves are kept, so that no address is ever used again.
        self.there: dict[int, torch.UntypedStorage] = {}
        self.default = False  # where an operation without tensors puts its result

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the simulated device."""
        return not tensor.is_meta and tensor.untyped_storage()._cdata in self.there

    def put(self, tensor: Tensor, there: bool) -> None:
        """Write down where a new tensor is."""
        storage = tensor.untyped_storage()
        if there:
            self.there[storage._cdata] = storage
        else:
            self.there.pop(storage._cdata, None)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_meta]


class Operations(TorchDispatchMode):
    """Every operation: tensors of one device only, and its results on that device."""

    def __init__(self, placement: Placement):
        super().__init__()
        self.placement = placement

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            given = tensors_in((args, kwargs))
            here = [tensor for tensor in given if not self.placement.holds(tensor)]
            name = func.overloadpacket.__name__
            if len(here) < len(given):
                # A single number may come from the CPU, and indices into a tensor that is there.
                indices = name in INDEXED and self.placement.holds(args[0])
                mixed = [tensor for tensor in here if tensor.ndim]
                if mixed and not indices and name not in AUTOMATIC:
                    raise RuntimeError(
                        f"Expected all tensors to be on the same device, but {name} got tensors "
                        f"on {DEVICE} and on the CPU."
                    )
            result = func(*args, **(kwargs or {}))
            there = len(here) < len(given) if given else self.placement.default
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for tensor in tensors_in(result):
                if tensor.untyped_storage()._cdata not in known:
                    self.placement.put(tensor, there)
            return result


class Calls(TorchFunctionMode):
    """Every call from Python: the device asked for, and the answers to where a tensor is."""

    def __init__(self, placement: Placement):
        super().__init__()
        self.placement = placement

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, placement = dict(kwargs or {}), self.placement
        if func == WHERE and placement.holds(args[0]):
            return DEVICE
        if func == ON_CPU and placement.holds(args[0]):
            return False
        if func in (Tensor.numpy, Tensor.__array__) and placement.holds(args[0]):
            raise TypeError(f"can't convert a {DEVICE} tensor to numpy; copy it to the CPU first.")
        # What is asked for is done on the CPU, and its result written down where it belongs.
        given = tensors_in((args, kwargs))
        asked = self.asked(func, args, kwargs)
        if asked == DEVICE:
            generator = kwargs.get("generator")
            if generator is not None:
                raise RuntimeError(f"Expected a {DEVICE} generator, but got one of the CPU.")
            args = tree_map_only((torch.device, str), self.real, args)
            kwargs = tree_map_only((torch.device, str), self.real, kwargs)
        before = placement.default
        placement.default = asked == DEVICE or any(placement.holds(one) for one in given)
        try:
            result = func(*args, **kwargs)
            if asked in (DEVICE, CPU):
                result = tree_map_only(Tensor, lambda one: self.move(one, given, asked), result)
        finally:
            placement.default = before
        return result

    def asked(self, func, args, kwargs) -> torch.device | None:
        """The device that a call asks for, if any."""
        device = kwargs.get("device")
        if func is Tensor.cpu:
            device = CPU
        if func in (Tensor.to, Tensor.type_as):
            for one in args[1:]:
                if isinstance(one, (str, torch.device)):
                    device = one
            other = kwargs.get("other", args[1] if len(args) > 1 else None)
            if isinstance(other, Tensor):
                device = DEVICE if self.placement.holds(other) else other.device
        if device is None:
            return None
        device = torch.device(device)
        return DEVICE if device.type == DEVICE.type else device

    @staticmethod
    def real(value):
        """A device as it is known to the CPU's own operations."""
        return CPU if str(value).partition(":")[0] == DEVICE.type else value

    def move(self, tensor: Tensor, given: list[Tensor], asked: torch.device) -> Tensor:
        """A result on the device asked for; a copy, where it is an argument itself."""
        there = asked == DEVICE
        if tensor.is_meta or self.placement.holds(tensor) == there:
            return tensor
        storages = {one.untyped_storage()._cdata for one in given}
        if tensor.untyped_storage()._cdata in storages:
            tensor = tensor.clone()
        self.placement.put(tensor, there)
        return tensor


@contextmanager
def simulated() -> Iterator[torch.device]:
    """Make the simulated device usable, and give it."""
    placement = Placement()
    # Tables that are kept for a device lie where an earlier placement put them.
    neighbor_table.cache_clear()
    # Libraries free the memory of a device that they take a model from, by its module of torch.
    setattr(torch, DEVICE.type, SimpleNamespace(empty_cache=lambda: None))
    try:
        with Operations(placement), Calls(placement):
            yield DEVICE
    finally:
        delattr(torch, DEVICE.type)
        neighbor_table.cache_clear()
