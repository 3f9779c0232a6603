"""Training of a generator side by side: a plain loop, and `train_generator` with its switches.

    python tests/benchmarks/training.py --tokenizer runs/tokenizer/vq_model --codes runs/codes

The plain loop is written here the way the papers' scripts work: batches of ids from memory, AdamW
of one kernel a tensor, an average of the weights updated one parameter after the other, the loss
read every step. Both train the same model on the same batches' size; images/s count after a warm-up
that also compiles.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from codeclade import CodecladeTransformer, VQModel
from codeclade.data.codes import Codes
from codeclade.evaluation import speed
from codeclade.training.generator import GeneratorRecipe, train_generator
from codeclade.training.generator_recipe import generator_config


def plain_loop(recipe: GeneratorRecipe, codes: Codes, warm: int, device: torch.device) -> float:
    """Images/s of the plain loop."""
    torch.manual_seed(recipe.seed)
    model = CodecladeTransformer(generator_config(recipe, codes, None)).to(device).train()
    average = [one.detach().clone() for one in model.parameters()]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), foreach=False, fused=False
    )
    bf16 = recipe.mixed_precision == "bf16"
    cast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    started = 0.0
    for step in range(warm + recipe.steps):
        if step == warm:
            started = time.perf_counter()
        rows = torch.randint(len(codes), (recipe.batch_size,)).tolist()
        ids, labels = zip(*(codes[(row, 0)] for row in rows), strict=True)
        ids = torch.stack([torch.as_tensor(one).long() for one in ids]).to(device)
        labels = torch.as_tensor(labels).to(device)
        with cast:
            loss = model(ids, class_labels=labels, labels=ids).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, now in zip(average, model.parameters(), strict=True):
                kept.mul_(recipe.ema_decay).add_(now, alpha=1 - recipe.ema_decay)
        loss.item()
    return recipe.steps * recipe.batch_size / (time.perf_counter() - started)


def ours(recipe: GeneratorRecipe, arguments: argparse.Namespace) -> float:
    """Images/s of `train_generator`, from its own log."""
    vq_model = VQModel.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        whole = replace(recipe, steps=arguments.warm + recipe.steps, log_every=arguments.warm)
        train_generator(whole, arguments.codes, vq_model, None, folder)
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").open()]
    logged = [(line["step"], line["seconds"]) for line in lines if "loss" in line]
    (first, early), (last, late) = logged[0], logged[-1]
    return (last - first) * recipe.batch_size / (late - early)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--codes", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm", type=int, default=20, help="a divisor of --steps")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = GeneratorRecipe(
        steps=arguments.steps, batch_size=arguments.batch, hidden_size=arguments.width,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.width // 64,
        intermediate_size=8 * arguments.width // 3 // 32 * 32, ema_decay=0.999, dropout=0.0,
        mixed_precision=arguments.mixed_precision, evaluate_every=10**9, save_every=10**9,
        tracker="none",
    )  # fmt: skip
    codes = Codes(Path(arguments.codes) / "train")
    print(speed.machine(device.type), flush=True)
    plain = plain_loop(recipe, codes, arguments.warm, device)
    print(f"plain eager loop: {plain:.2f} images/s", flush=True)
    for name, settings in {"ours": {}, "ours, compile=true": {"compile": True}}.items():
        found = ours(replace(recipe, **settings), arguments)
        print(f"{name}: {found:.2f} images/s, {found / plain:.2f}x", flush=True)


if __name__ == "__main__":
    main()
