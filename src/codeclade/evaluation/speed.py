"""Speed of generation beside the time it takes to read the weights once, measured in one run.

At batch 1 every token needs every weight, so reading them is the floor of a step. Weights of a
published shape may be random: time does not depend on them, but what decoding in parallel saves
does, so that is measured for a trained pipeline alone.

Shapes: B images, T tokens.
"""

import itertools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..components.generation import SamplingSettings, draw_uniforms, sample_tokens
from ..components.optimization import FORMS, optimize
from ..components.parallel import WINDOW, sample_in_parallel
from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..data.component_configs import component_configs
from ..data.families import read_family

WAYS = ("eager", *FORMS, "compiled", "parallel")
ROUNDED = {"int8", "int4"}  # forms that change the numbers, not their layout alone


@dataclass
class Speed:
    """One row of the table."""

    way: str  # one of WAYS, or the name of another program's loop
    batch: int  # B
    dtype: str
    milliseconds: float  # of a step, which makes one token of every image
    images_per_second: float  # if the whole image went on like the steps measured


@dataclass
class Quality:
    """How far a form of the weights is from the plain one, on the same ids."""

    way: str
    nats_per_id: float  # loss of ids that the plain form sampled
    largest_difference: float  # of any logit


def load_transformer(source: str, dtype: torch.dtype, device: str) -> CodecladeTransformer:
    """The generator of a pipeline's folder, or one of the shape FAMILY:SIZE with random weights.

    Raises:
        ValueError: neither a folder with a transformer nor a recipe and a size of it.
    """
    folder = Path(source) / "transformer"
    if folder.is_dir():
        return CodecladeTransformer.from_pretrained(folder, dtype=dtype).to(device)
    name, _, size = source.partition(":")
    config = component_configs(read_family(name), size or None)["transformer"]
    torch.manual_seed(0)
    model = CodecladeTransformer(CodecladeConfig(**config))
    # A new head is zero, and zeros could be multiplied faster than numbers.
    for part in model.head.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
    return model.eval().to(device, dtype)


def is_trained(source: str) -> bool:
    """Whether `load_transformer` reads weights and does not make them."""
    return (Path(source) / "transformer").is_dir()


def conditions(transformer: CodecladeTransformer, batch: int) -> tuple[dict, dict]:
    """Arguments of a first call for `batch` images, with and without the condition.

    Raises:
        ValueError: a transformer that takes captions.
    """
    if transformer.config.text_dim:
        raise ValueError("speed is measured for classes; this transformer takes captions.")
    labels = torch.arange(batch, device=transformer.device) % transformer.config.num_classes
    return {"class_labels": labels}, {"class_labels": transformer.null_labels(batch)}


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given, or a clock would measure the giving."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(transformer: CodecladeTransformer, batch: int, steps: int, scale: float) -> float:
    """Median milliseconds of a step over the first `steps` ones; the prefix is left out."""
    ticks: list[float] = []

    def after_token(step: int, tokens: Tensor) -> tuple[Tensor, float, bool]:
        wait(tokens.device)
        ticks.append(time.perf_counter())
        return tokens, scale, len(ticks) > steps

    seeds = draw_uniforms(batch, transformer, torch.Generator().manual_seed(0)).tokens
    given = transformer, *conditions(transformer, batch), seeds.to(transformer.device)
    sample_tokens(*given, SamplingSettings(guidance_scale=scale), None, after_token)
    # The first step is the prefix, and the next one still touches everything for the first time.
    spans = [late - early for early, late in itertools.pairwise(ticks[1:])]
    return 1000 * statistics.median(spans)


def time_parallel(transformer: CodecladeTransformer, scale: float) -> float:
    """Milliseconds a token of one whole image, several tokens a pass."""
    seeds = draw_uniforms(1, transformer, torch.Generator().manual_seed(0)).tokens
    given = transformer, *conditions(transformer, 1), seeds.to(transformer.device)
    start = time.perf_counter()
    sample_in_parallel(*given, SamplingSettings(guidance_scale=scale), WINDOW)
    wait(transformer.device)
    return 1000 * (time.perf_counter() - start) / transformer.config.num_tokens


def reading_floor(transformer: CodecladeTransformer, repeats: int = 5) -> float:
    """Least milliseconds to read as many bytes as the decoder's matrices have, once."""
    parts = [part for part in transformer.modules() if isinstance(part, nn.Linear)]
    count = sum(part.weight.numel() * part.weight.element_size() for part in parts)
    memory = torch.ones(count // 8, dtype=torch.int64, device=transformer.device)
    spans = []
    for _ in range(repeats):
        wait(transformer.device)
        start = time.perf_counter()
        memory.sum()
        wait(transformer.device)
        spans.append(time.perf_counter() - start)
    return 1000 * min(spans)


def measure(
    source: str,
    ways: list[str],
    batches: list[int],
    steps: int,
    dtype: torch.dtype,
    device: str,
    scale: float = 2.0,
    repeats: int = 3,
    report: Callable[[Speed], None] = lambda row: None,
) -> tuple[float, list[Speed], list[Quality]]:
    """Floor in milliseconds, a row for every way and batch, and the quality of rounded weights.

    Args:
        steps: tokens that are timed.
        scale: guidance scale; above 1 every image has two rows.
        repeats: the least of so many medians counts.
        report: called with every row once it is known.
    """
    # The floor is what no way can beat: reading every weight once a token.
    plain = load_transformer(source, dtype, device)
    floor = reading_floor(plain)
    steps = min(steps, plain.config.num_tokens - 1)
    models = {way: model_for(way, source, plain) for way in ways}
    quality = judged(models, plain, scale)
    # The ways take turns: what else the machine does then slows them all.
    rows = []
    for batch in batches:
        timed = {way: model for way, model in models.items() if way != "parallel" or batch == 1}
        spans: dict[str, list[float]] = {way: [] for way in timed}
        for way, model in [*timed.items()] * repeats:
            spans[way].append(time_way(way, model, batch, steps, scale))
        for way, found in spans.items():
            rows.append(as_row(way, batch, found, plain))
            report(rows[-1])
    return floor, rows, quality


def model_for(way: str, source: str, plain: CodecladeTransformer) -> CodecladeTransformer:
    """The generator in the form that a way needs; weights change for good, so it is a copy."""
    if way == "eager":
        return plain
    model = load_transformer(source, plain.dtype, str(plain.device))
    if way in FORMS:
        optimize(model, way)
    if way == "compiled":
        model.compile()
    return model


def judged(models: dict[str, CodecladeTransformer], plain, scale: float) -> list[Quality]:
    """Rounded weights by logits on the ids that the plain model drew; nothing without any."""
    rounded = [way for way in models if way in ROUNDED]
    if not rounded:
        return []
    ids, expected = sampled_logits(plain, scale)
    both = {"eager": plain, **{way: models[way] for way in rounded}}
    return [judge(way, model, ids, expected) for way, model in both.items()]


def time_way(way: str, model: CodecladeTransformer, batch: int, steps: int, scale: float) -> float:
    """Milliseconds a step, or a token where several are decoded in a pass."""
    if way == "parallel":
        return time_parallel(model, scale)
    return time_steps(model, batch, steps, scale)


def as_row(way: str, batch: int, spans: list[float], model: CodecladeTransformer) -> Speed:
    """The least of several medians: what else the machine does can only add time."""
    least = min(spans)
    images = 1000 * batch / (least * model.config.num_tokens)
    return Speed(way, batch, str(model.dtype).removeprefix("torch."), least, images)


@torch.no_grad()
def sampled_logits(model: CodecladeTransformer, scale: float) -> tuple[Tensor, Tensor]:
    """Ids (2, T, ...) that a model samples, and its logits of them (2, T, V)."""
    seeds = draw_uniforms(2, model, torch.Generator().manual_seed(1)).tokens.to(model.device)
    given = model, *conditions(model, 2), seeds
    ids = sample_tokens(*given, SamplingSettings(guidance_scale=scale))
    return ids, logits_of(model, ids)


def logits_of(model: CodecladeTransformer, ids: Tensor) -> Tensor:
    """Teacher-forced logits of ids; of pairs those of the semantic code."""
    labels = conditions(model, len(ids))[0]["class_labels"]
    output = model(ids, labels)
    if output.logits is None:
        return output.semantic_logits
    return output.logits[:, -ids.shape[1] - 1 : -1]  # position P - 1 + t speaks of token t


@torch.no_grad()
def judge(way: str, model: CodecladeTransformer, ids: Tensor, expected: Tensor) -> Quality:
    """Likelihood of ids and largest difference to the logits expected."""
    logits = logits_of(model, ids)
    fine = ids[..., 0] if ids.ndim > 2 else ids
    nats = F.cross_entropy(logits.flatten(0, 1), fine.flatten())
    return Quality(way, nats.item(), (logits - expected).abs().max().item())


def machine(device: str) -> dict[str, Any]:
    """What the numbers hold for."""
    from .. import __version__

    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        lines = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    if device.startswith("cuda"):
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return {
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "codeclade": __version__,
    }


def table(floor: float, rows: list[Speed], quality: list[Quality]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| decoding | batch | ms a step | images/s | of the floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.way}, {row.dtype} | {row.batch} | {row.milliseconds:.2f} | "
            f"{row.images_per_second:.3g} | {row.milliseconds / floor:.1f}x |"
        )
    lines.append(f"\nReading the weights once takes {floor:.2f} ms.")
    for one in quality:
        lines.append(
            f"{one.way}: {one.nats_per_id:.4f} nats an id of its plain samples, largest difference "
            f"of a logit {one.largest_difference:.3f}."
        )
    return "\n".join(lines)


def as_record(
    source: str, device: str, floor: float, rows: list[Speed], quality: list[Quality]
) -> dict[str, Any]:
    """All of it for a JSON file."""
    return {
        "source": source,
        **machine(device),
        "floor_milliseconds": floor,
        "speeds": [asdict(row) for row in rows],
        "quality": [asdict(one) for one in quality],
    }
