"""Generation side by side: reading the weights once, a plain loop, and ours in every form.

    python tests/benchmarks/generation.py --quick
    python tests/benchmarks/generation.py --json speed.json --plot speed.png
    python tests/benchmarks/generation.py --reference ~/LlamaGen

The plain loop is written here the way LlamaGen's published generate.py works: a cache of the full
length, a row of a causal mask for every step, guidance as a second half of the batch, soft-max and
multinomial draws. `--reference` runs the user's own checkout of LlamaGen too. All have the same
shape and the same number of tokens; ours and the plain loop have the same weights.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from codeclade import CodecladeTransformer
from codeclade.components.blocks import rotate, rotation
from codeclade.evaluation import speed


class PlainLoop:
    """A class-conditional decoder of one stage, and a loop over its tokens."""

    def __init__(self, model: CodecladeTransformer, batch: int, scale: float):
        config = model.config
        self.model, self.scale, self.heads = model, scale, config.num_attention_heads
        self.length = config.prefix_length + config.num_tokens
        positions = torch.arange(self.length)
        self.cos, self.sin = rotation(positions, config.grid_size, config.head_dim)
        self.mask = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        shape = (2 * batch, self.heads, self.length, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=model.dtype) for _ in model.layers]
        self.values = [torch.zeros(shape, dtype=model.dtype) for _ in model.layers]

    def step(self, x: Tensor, position: Tensor) -> Tensor:
        """Mixed logits (B, V) after one position x (2B, 1, D)."""
        cos, sin = self.cos[position], self.sin[position]
        for layer, keys, values in zip(self.model.layers, self.keys, self.values, strict=True):
            projected = layer.attention.qkv(layer.attention_norm(x))
            query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            keys[:, :, position], values[:, :, position] = key, value
            mask = self.mask[None, None, position]
            mixed = F.scaled_dot_product_attention(query, keys, values, mask)
            x = x + layer.attention.out(mixed.transpose(1, 2).flatten(2))
            normed, forward = layer.feed_forward_norm(x), layer.feed_forward
            x = x + forward.down(F.silu(forward.gate(normed)) * forward.up(normed))
        logits = self.model.head(self.model.norm(x))[:, -1].float()
        conditional, unconditional = logits.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    @torch.no_grad()
    def time(self, steps: int) -> float:
        """Median milliseconds of a step."""
        batch = len(self.keys[0]) // 2
        labels = torch.arange(batch) % self.model.config.num_classes
        null = torch.full_like(labels, self.model.config.num_classes)
        x, ticks = self.model.prefix(torch.cat([labels, null])), []
        for number in range(steps + 1):
            probabilities = self.step(x, torch.tensor([number])).softmax(-1)
            token = torch.multinomial(probabilities, 1)  # (B, 1)
            x = self.model.token_embedding(torch.cat([token, token]))
            ticks.append(time.perf_counter())
        spans = [late - early for early, late in itertools.pairwise(ticks[1:])]
        return 1000 * statistics.median(spans)


def plain_loop(model: CodecladeTransformer, batch: int, scale: float, steps: int) -> float:
    """Median milliseconds of a step of a new `PlainLoop`."""
    return PlainLoop(model, batch, scale).time(steps)


def time_reference(folder: Path, batch: int, tokens: int, dtype: torch.dtype, scale: float):
    """Milliseconds a token of LlamaGen's own GPT-B and generate.py, from a checkout."""
    sys.path.insert(0, str(folder))
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import GPT_models

    model = GPT_models["GPT-B"](vocab_size=16384, block_size=tokens, num_classes=1000)
    model = model.eval().to(dtype)
    start = time.perf_counter()
    generate(model, torch.arange(batch), tokens, cfg_scale=scale, temperature=1.0, top_k=0)
    return 1000 * (time.perf_counter() - start) / tokens


def plot(path: str, floor: float, rows: list[speed.Speed]) -> None:
    """Bars of milliseconds a step at the smallest batch, above the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batch = min(row.batch for row in rows)
    shown = [row for row in rows if row.batch == batch]
    figure, axes = pyplot.subplots(figsize=(6.5, 0.5 * len(shown) + 1.2), layout="constrained")
    names = [row.way for row in shown]
    bars = axes.barh(names, [row.milliseconds for row in shown], color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(floor, color="#cc6677", linestyle="--", label=f"weights read once, {floor:.1f}")
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds a step, batch {batch}, {shown[0].dtype}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="llamagen:b-256", help="as in codeclade bench")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--ways", nargs="+", default=["eager", "packed", "single", "int8", "int4"])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--scale", type=float, default=2.0, help="guidance")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of LlamaGen")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="batch 1, 16 steps, once")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype, repeats = getattr(torch, arguments.dtype), 1 if arguments.quick else 3
    batches = [1] if arguments.quick else arguments.batches
    steps = 16 if arguments.quick else arguments.steps
    print(speed.machine("cpu"), flush=True)

    # All in one process on the same machine, taking turns.
    plain = speed.load_transformer(arguments.source, dtype, "cpu")
    floor, tokens = speed.reading_floor(plain), plain.config.num_tokens
    steps, scale = min(steps, tokens - 1), arguments.scale
    models = {way: speed.model_for(way, arguments.source, plain) for way in arguments.ways}
    quality, rows = speed.judged(models, plain, scale), []
    for batch in batches:
        timed: dict[str, Callable[[], float]] = {
            "plain loop": partial(plain_loop, plain, batch, scale, steps)
        }
        if arguments.reference:
            given = arguments.reference, batch, tokens, dtype, scale
            timed["LlamaGen's own loop"] = partial(time_reference, *given)
        for way, model in models.items():
            if way != "parallel" or batch == 1:
                timed[way] = partial(speed.time_way, way, model, batch, steps, scale)
        spans: dict[str, list[float]] = {name: [] for name in timed}
        for name, time_one in [*timed.items()] * repeats:
            spans[name].append(time_one())
        for name, found in spans.items():
            rows.append(speed.as_row(name, batch, found, plain))
            ratios = [a / b for a, b in zip(spans["plain loop"], found, strict=True)]
            print(rows[-1], f"faster than the plain loop: {statistics.median(ratios):.2f}x")
    print(speed.table(floor, rows, quality))
    if arguments.json:
        record = speed.as_record(arguments.source, "cpu", floor, rows, quality)
        Path(arguments.json).write_text(json.dumps(record, indent=2) + "\n")
    if arguments.plot:
        plot(arguments.plot, floor, rows)


if __name__ == "__main__":
    main()
