"""Steps of a generator's training side by side: a plain loop, and `train_generator`.

    python tests/benchmarks/training.py --mixed-precision bf16

The plain loop is written here the way the papers' scripts work: batches of ids from memory, AdamW
of one kernel a tensor, an average of the weights updated one parameter after the other, the loss
read every step, attention by PyTorch's fused kernel. Both train the same model on batches of the
same size, drawn at random, and take turns step by step, so that whatever else a machine does meets
both; the times are those of the processor (on a GPU of the clock), the ratio is the median over the
pairs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from codeclade import CodecladeTransformer, VQModel
from codeclade.components.cluster_map import codebook_sketch
from codeclade.data.codes import Codes
from codeclade.evaluation import speed
from codeclade.training.generator import GeneratorRecipe, GeneratorTraining, _train
from codeclade.training.generator_recipe import generator_config
from codeclade.training.optimization import build_optimizer
from codeclade.training.run import Run


def random_codes(
    folder: Path,
    vq_model: VQModel,
    grid: int,
    images: int = 512,
    views: int = 1,
    classes: int = 100,
    shard_size: int = 10_000,
) -> None:
    """Shards of `images` and 8 images whose ids are drawn at random."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", images), ("validation", 8)):
        (folder / split).mkdir(parents=True)
        names = []
        for start in range(0, count, shard_size):
            shape = min(shard_size, count - start), views, grid**2
            ids = torch.randint(vq_model.codebook_size, shape, generator=draw).to(torch.uint16)
            labels = torch.randint(classes, shape[:1], generator=draw)
            names.append(f"codes-{len(names):05d}.safetensors")
            save_file({"ids": ids, "labels": labels}, folder / split / names[-1])
        header = {
            "split": split, "views": views, "grid_size": grid, "recipe": {}, "images": count,
            "codebook_size": vq_model.codebook_size, "detail_codebook_size": None,
            "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
            "class_names": [str(i) for i in range(classes)], "shards": names,
        }  # fmt: skip
        (folder / split / "codes.json").write_text(json.dumps(header))


def plain_loop(recipe: GeneratorRecipe, codes: Codes, device: torch.device) -> Iterator[float]:
    """Steps of the plain loop, with their losses."""
    torch.manual_seed(recipe.seed)
    model = CodecladeTransformer(generator_config(recipe, codes, None)).to(device).train()
    # By a name of its own, for which the model does not look for something faster.
    AttentionInterface.register("fused", sdpa_attention_forward)
    AttentionMaskInterface.register("fused", sdpa_mask)
    model.set_attn_implementation("fused")
    average = [one.detach().clone() for one in model.parameters()]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), foreach=False, fused=False
    )
    bf16 = recipe.mixed_precision == "bf16"
    while True:
        rows = torch.randint(len(codes), (recipe.batch_size,)).tolist()
        ids, labels = zip(*(codes[(row, 0)] for row in rows), strict=True)
        ids, labels = torch.stack(ids).to(device), torch.stack(labels).to(device)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss = model(ids[:, :-1], class_labels=labels, labels=ids).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, now in zip(average, model.parameters(), strict=True):
                kept.mul_(recipe.ema_decay).add_(now, alpha=1 - recipe.ema_decay)
        yield loss.item()


def ours(recipe: GeneratorRecipe, codes: Path, vq_model: VQModel, out: Path) -> Iterator[int]:
    """Steps of `train_generator`."""
    training = GeneratorTraining(recipe, codes, vq_model, None)
    run = Run(recipe, out)
    objective = training.objective()
    run.start(objective, build_optimizer(objective, recipe))
    run.describe(training.summary())
    yield from _train(run, training)


def seconds(steps: Iterator, clock) -> float:
    """Time of the next step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    next(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3, help="steps before, which also compile")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--grid", type=int, default=8, help="tokens a side")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--compile", action="store_true", help="of ours")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = GeneratorRecipe(
        steps=10**6, batch_size=arguments.batch, hidden_size=arguments.width,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.width // 64,
        intermediate_size=8 * arguments.width // 3 // 32 * 32, ema_decay=0.999,
        dropout=arguments.dropout, mixed_precision=arguments.mixed_precision,
        evaluate_every=10**9, save_every=10**9, tracker="none",
    )  # fmt: skip
    print(speed.machine(device.type), vars(arguments), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        vq_model = VQModel(
            block_out_channels=(32, 32), layers_per_block=1, latent_channels=32,
            codebook_size=arguments.vocabulary, codebook_dim=8, sample_size=2 * arguments.grid,
        )  # fmt: skip
        random_codes(out / "codes", vq_model, arguments.grid)
        plain = plain_loop(recipe, Codes(out / "codes" / "train"), device)
        own = replace(recipe, compile=arguments.compile)
        steps = ours(own, out / "codes", vq_model, out / "run")
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        pairs = [
            (seconds(plain, clock), seconds(steps, clock))
            for _ in range(arguments.warm + arguments.steps)
        ][arguments.warm :]
    plain, own = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"plain {plain:.3f} s a step, ours {own:.3f} s: {ratio:.2f}x")


if __name__ == "__main__":
    main()
