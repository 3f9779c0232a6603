"""What test_processes.py runs on one and on two processes: `python processes.py FOLDER NAME...`.

It needs tests/ in PYTHONPATH.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from builders import build_vq
from codeclade.training import throughput
from codeclade.training.dead_codes import CodeUsage, revive_dead_codes
from codeclade.training.generator import train_generator
from codeclade.training.optimization import build_optimizer
from codeclade.training.recipe import RunRecipe
from codeclade.training.run import Run
from codeclade.training.start_table import DataSummary
from codeclade.training.throughput import ImageCost
from codeclade.training.tokenizer import TokenizerTraining
from codeclade.training.tokenizer_losses import ImageLosses
from codeclade.training.tokenizer_recipe import TokenizerRecipe
from generator_runs import RECIPE, write_codes
from points import Points
from shared_runs import grow, low_rank, refiner, text


def recipe(**changes) -> RunRecipe:
    settings = {"steps": 20, "batch_size": 16, "learning_rate": 0.01, "mixed_precision": "no"}
    return RunRecipe(**settings | {"log_every": 1, "save_every": 10} | changes)


def squared_error(run: Run):
    """Losses of one pass."""
    return lambda x, y: {"loss": (run.model(x) - y).square().mean()}


def losses(folder: Path) -> dict:
    """A network without dropout, trained by an optimizer that the scale of gradients matters to."""
    run = Run(recipe(gradient_clip=1e3), folder)
    run.start(model := nn.Linear(4, 1), torch.optim.SGD(model.parameters()))
    for done, batch in run.steps(Points()):
        run.log_losses(done, run.optimize(batch, squared_error(run)))
    return {"weights": run.finished_model().weight.flatten().tolist(), "passes": run.passes}


def passes(folder: Path) -> dict:
    """The same in two passes a step, as a flag of `accelerate launch` asks for."""
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "2"
    try:
        return losses(folder)
    finally:
        del os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]


def dropout(folder: Path) -> dict:
    """Which of 64 units the first step drops, here and after a restart from the checkpoint."""
    masks = []
    for _ in range(2):
        run = Run(recipe(steps=2, save_every=1), folder)
        run.start(model := nn.Linear(4, 1), build_optimizer(model, recipe()))
        for _, batch in run.steps(Points()):
            masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist())
            run.optimize(batch, squared_error(run))
            if len(masks) == 2:
                break  # the second step is not saved, so the second run repeats it
    return {"masks": masks, "weights": model.weight.tolist()}


def usage(folder: Path) -> dict:
    """Rank 0 uses the even codes and rank 1 the odd ones: none is dead but the last two."""

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.codebook = nn.Parameter(torch.eye(10, 4) + 1)
            self.register_buffer("scale", torch.ones(()))  # DDP broadcasts buffers

        def forward(self, ids):
            return (self.codebook[ids] * self.scale).square().mean()

    accelerator = Accelerator()
    model = accelerator.prepare(Counted())
    codebook = accelerator.unwrap_model(model).codebook
    optimizer, counter = torch.optim.Adam([codebook]), CodeUsage(10, accelerator)
    ids = torch.arange(accelerator.process_index, 8, 2)
    for _ in range(3):
        optimizer.zero_grad()
        accelerator.backward(model(ids))
        optimizer.step()
        counter.add(ids)
    counts, before = counter.counts.tolist(), codebook.detach().clone()
    torch.manual_seed(accelerator.process_index)
    latents = nn.functional.normalize(torch.randn(2, 4, 3, 3), dim=1)
    moved = len(revive_dead_codes(codebook, optimizer, counter, latents))
    changed = (codebook != before).any(1).nonzero().flatten().tolist()
    return {"counts": counts, "moved": moved, "changed": changed, "codebook": codebook.tolist()}


class Images(torch.utils.data.Dataset):
    """Twelve uint8 images (3, 16, 16) and labels."""

    def __init__(self):
        self.images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator())

    def __len__(self):
        return 12

    def __getitem__(self, key):
        return self.images[key[0]].byte(), torch.tensor(0)


def tokenizer(folder: Path, **changes) -> dict:
    """Two codebooks that are running means, and a discriminator of adaptive weight."""
    update = {"codebook_update": "ema", "codebook_decay": 0.5} | changes
    settings = TokenizerRecipe(
        data="drawn",
        image_size=16,
        block_out_channels=[32, 32],
        layers_per_block=1,
        latent_channels=32,
        codebook_size=16,
        codebook_dim=4,
        detail_codebook_size=6,
        semantic_every=2,
        perceptual="none",
        discriminator_weight=0.5,
        discriminator_adaptive=True,
        discriminator_start=1,
        discriminator_channels=32,
        discriminator_layers=1,
        revive_every=0,
        steps=4,
        batch_size=4,
        warmup=1,
        mixed_precision="no",
        log_every=1,
        **update,
    )
    run = Run(settings, folder)
    training = TokenizerTraining(run, settings, ImageLosses(settings))
    training.start()
    for done, batch in run.steps(Images()):
        run.log_losses(done, training.step(done, batch))
        run.log(done, training.usage())
    return {
        "codebook": training.vq_model.codebook.flatten().tolist(),
        "patches": training.adversary.plain_network.layers[0].bias.tolist(),
    }


def sharded(folder: Path) -> dict:
    """Averages of a model in shards, against those of the same model in one piece."""
    from codeclade.training.averages import AveragedWeights, averaged_weights, whole_state

    accelerator, found = Accelerator(), {}
    for name in ("whole", "shards"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1))
        if name == "shards":
            fully_shard(model, mesh=init_device_mesh("cpu", (accelerator.num_processes,)))
        averages = AveragedWeights(model.parameters(), decay=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        draw = torch.Generator().manual_seed(1)
        for _ in range(4):
            points = torch.randn(8, 4, generator=draw)  # the same on all processes
            (model(points) - points.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            averages.step(model.parameters())
        before = whole_state(model)
        with averaged_weights(model, averages):
            inside = whole_state(model)
        after = whole_state(model)

        # A checkpoint of whole tensors comes back as shards.
        state = averages.state_dict()
        torch.save(state, folder.parent / f"{name}-{accelerator.process_index}.pt")
        path = folder.parent / f"{name}-{accelerator.process_index}.pt"
        again = AveragedWeights(model.parameters(), decay=0.5)
        again.load_state_dict(torch.load(path, weights_only=True))
        with averaged_weights(model, again):
            loaded = whole_state(model)
        found[name] = {
            "averages": {key: value.tolist() for key, value in inside.items()},
            "restored": all(torch.equal(before[key], after[key]) for key in before),
            "loaded": all(torch.equal(inside[key], loaded[key]) for key in inside),
            "held": sum(getattr(p, "_local_tensor", p).numel() for p in averages.shadow_params),
        }
    return found


def generator(folder: Path) -> dict:
    """Losses of a generator with priors and added losses, two passes a step, without dropout."""
    vq_model, accelerator = build_vq(), Accelerator()
    if accelerator.is_main_process:
        write_codes(folder / "codes", vq_model)
    accelerator.wait_for_everyone()
    recipe = replace(
        RECIPE, dropout=0.0, class_dropout=0.0, embedding_prior="context", tree_loss_weight=0.3,
        steps=6, batch_size=8, gradient_accumulation_steps=2, sample_every=3, use_best=True,
    )  # fmt: skip
    train_generator(recipe, folder / "codes", vq_model, None, folder / "run")
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    names = ("loss", "validation_loss", "gradient_norm", "accuracy")
    return {"log": [{n: json.loads(line).get(n) for n in names} for line in lines]}


def tokenizer_by_gradient(folder: Path) -> dict:
    """The same in two passes a step, with codebooks that the optimizer moves."""
    return tokenizer(folder, codebook_update="gradient", gradient_accumulation_steps=2)


def reports(folder: Path) -> dict:
    """What a run tells: log, tracker, table and speeds, where every step takes a second."""
    clock = SimpleNamespace(monotonic=lambda: float(clock.seconds), seconds=0)
    throughput.time, real = clock, throughput.time
    try:
        run = Run(recipe(steps=6, log_every=2, save_every=3, tracker="tensorboard"), folder)
        run.start(model := nn.Linear(4, 1), build_optimizer(model, recipe()))
        run.describe(DataSummary("points", 50, 0, 1), ImageCost(tokens=3))
        for done, batch in run.steps(Points()):
            clock.seconds += 1
            run.log_losses(done, run.optimize(batch, squared_error(run)))
    finally:
        throughput.time = real
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    speeds = ("step", "images_per_second", "tokens_per_second", "seconds_left")
    return {
        "log": [{name: line[name] for name in speeds} for line in lines],
        "trackers": len([*folder.rglob("events.out.*")]),
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "batch": len(batch[0]),
    }


if __name__ == "__main__":
    place, names = Path(sys.argv[1]), sys.argv[2:]
    runs = (losses, passes, dropout, usage, tokenizer, tokenizer_by_gradient, sharded, generator)
    runs = {run.__name__: run for run in (*runs, reports, grow, low_rank, text, refiner)}
    found = {name: runs[name](place / name) for name in names}
    (place / f"rank-{Accelerator().process_index}.json").write_text(json.dumps(found))
