"""What a run says before its first step: data, parts, device, memory by arithmetic."""

from typing import NamedTuple

import torch
from torch import nn

GIB = 2**30


class DataSummary(NamedTuple):
    """What a run learns from, in numbers."""

    source: str  # where the images come from
    images: int | None  # None: not known, as they are streamed
    held_out: int  # images for validation
    classes: int


def start_table(
    model: nn.Module,
    data: DataSummary,
    *,
    tokens: int | None,
    batch_size: int,
    passes: int,
    steps: int,
    first: int,
    precision: str,
    device: str,
    processes: int,
    averaged: bool,
    shards: int = 1,
    activations: float | None = None,
) -> str:
    """Lines to print.

    Args:
        model: its children are the parts.
        tokens: positions of an image.
        batch_size, passes, steps, first: of the run; `first` steps are done.
        precision, device, processes: where it runs.
        averaged: whether there are averaged weights.
        shards: processes that share one copy of parameters, gradients and optimizer.
        activations: bytes of one pass on a device; None: not known.
    """
    source, images, held_out, classes = data
    # Epochs are known where the images are counted, which a stream's are not.
    counted, batches = "streamed images", f"batches of {batch_size}"
    if images is not None:
        counted = f"{images:,} images"
        batches = f"{steps * batch_size / max(1, images):,.1f} epochs of {batches}"
    left = batches if first < steps else "nothing left to train; more steps= go on from here"
    tokens_line = [("tokens", f"{tokens:,} an image, {images * tokens:,}")] if tokens else []
    rows = [
        ("data", f"{source}: {counted}, {classes:,} classes; {held_out:,} for validation"),
        *tokens_line,
        ("device", f"{processes} x {device}, precision {precision}"),
        ("steps", f"{first:,} of {steps:,} done, {left}"),
        ("batch", f"{processes} x {passes} passes x {batch_size // (processes * passes)} images"),
        *((f"  {name}", described) for name, described in parts(model)),
        ("memory", memory_line(model, averaged, shards, activations)),
    ]
    # Names in one column, whatever the model has for parts.
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def parts(model: nn.Module) -> list[tuple[str, str]]:
    """Every part with its parameters, how many are trainable, and their type.

    A model that stands beside its losses in one module is shown by its own parts.
    """
    found, inside = [], getattr(model, "model", None)
    # A model inside an objective is listed by its own parts, beside the objective's others.
    children = dict(model.named_children())
    if isinstance(inside, nn.Module):
        children = dict(inside.named_children()) | {
            k: v for k, v in children.items() if k != "model"
        }
    for name, part in children.items():
        parameters = list(part.parameters())
        if not parameters:
            continue
        total = sum(p.numel() for p in parameters)
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
        found.append((name, f"{total:,} parameters, {trainable:,} trainable, {'/'.join(kinds)}"))
    return found


def memory_bytes(model: nn.Module, averaged: bool, shards: int = 1) -> dict[str, float]:
    """Bytes a device holds all the time, by arithmetic: also of a model on the meta device.

    AdamW keeps two numbers a trainable parameter. Activations come on top.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    found = {"parameters": size, "gradients": trainable, "optimizer": 2 * trainable}
    if averaged:
        found["average"] = size
    return {name: value / shards for name, value in found.items()}


def activation_bytes(
    *, positions: int, layers: int, width: int, inner: int, vocabulary: int, bytes_each: int,
    checkpointing: bool,
) -> float:  # fmt: skip
    """Bytes that one pass keeps for its backward pass, about.

    A block keeps 15 D + 4 F numbers a position (counted with fused attention and dropout), or with
    checkpointing its input alone, and one block at a time everything; logits are three float32
    copies: themselves, their softmax and its gradient.

    Args:
        positions: of all sequences of a pass.
        layers, width, inner, vocabulary: blocks, D, F, and entries of all output layers.
        bytes_each: of a number: 2 in mixed precision, else 4.
    """
    block = (15 * width + 4 * inner) * bytes_each
    blocks = layers * width * bytes_each + block if checkpointing else layers * block
    return float(positions * (blocks + 12 * vocabulary))


def memory_line(
    model: nn.Module, averaged: bool, shards: int = 1, activations: float | None = None
) -> str:
    """`memory_bytes` in words."""
    found = memory_bytes(model, averaged, shards)
    if activations is not None:
        found["activations about"] = activations
    each = ", ".join(f"{name} {amount(value)}" for name, value in found.items())
    more = "" if activations is not None else ", and activations"
    return f"{amount(sum(found.values()))} a device ({each}){more}"


def amount(size: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that gives more than one of it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def device_name(device: torch.device) -> str:
    """The device as its vendor names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
