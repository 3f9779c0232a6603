"""Short runs of generators and refiners that several processes share.

test_processes.py and test_sharding.py run them on one and on two processes:
`python shared_runs.py WAY FOLDER NAME...`, where WAY is "copies" (DDP: every process has the whole
model) or "shards" (FSDP2: a part of it).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from builders import PREFIX, TEXT_DIM, build_map, build_scheme, build_transformer, build_vq
from codeclade.training.generator import train_generator
from codeclade.training.refiner import RefinerRecipe, train_refiner
from generator_runs import RECIPE, write_codes

SCRIPT = Path(__file__)
IMAGES, HELD_OUT = 32, 3  # held-out images are no multiple of the processes
COMMON = {"batch_size": 8, "evaluate_every": 3, "save_every": 3, "use_best": True}
# Equal on any number of processes: no step draws a number.
STEADY = replace(RECIPE, dropout=0.0, class_dropout=0.0, steps=6, sample_every=3, **COMMON)
# With all that is drawn, and what else changes how a step is computed.
LIVELY = replace(
    STEADY, steps=4, dropout=0.1, class_dropout=0.5, drop_path=0.2, gradient_accumulation_steps=2,
    gradient_checkpointing=True,
)  # fmt: skip
NUMBERS = ("loss", "validation_loss", "gradient_norm", "accuracy", "clusters")


def launched(script: Path, folder: Path, *arguments: object) -> list[dict]:
    """What two processes of a script write: `folder`/rank-0.json and rank-1.json.

    The lines they print are in `folder`/stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What a launcher says to its processes; the launcher itself would import everything once more.
    paths = [str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    settings = {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }  # fmt: skip
    command = [sys.executable, str(script), *map(str, arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("w") as lines:
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=lines,
            )
            for rank in (0, 1)
        ]
        # Where one fails the other would wait for it.
        while all(process.poll() is None for process in processes):
            time.sleep(0.05)
        failed = any(process.poll() for process in processes)
        for process in processes:
            if failed:
                process.kill()
            failed |= process.wait() != 0
    assert not failed, (folder / "stderr").read_text()[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def shard_models(version: int = 2) -> None:
    """Let accelerate shard models on the CPU too, which it does on vendors' devices alone."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    Accelerator()
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin


def prepare(write: Callable[[Path], None], folder: Path) -> Path:
    """A folder that the main process fills for all."""
    accelerator = Accelerator()
    if accelerator.is_main_process:
        write(folder)
    accelerator.wait_for_everyone()
    return folder


def trained(
    folder: Path, train: Callable[[Path], torch.nn.Module], again: bool = False
) -> dict[str, object]:
    """What a run logs and leaves behind.

    Args:
        train: trains in a folder and returns the finished model.
        again: go on a second time from the checkpoint before the last, and look at that.
    """
    model, accelerator = train(folder), Accelerator()
    if again:
        if accelerator.is_main_process:
            shutil.rmtree(folder / "checkpoints" / "step-00000006")
        accelerator.wait_for_everyone()
        model = train(folder)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "log": [{name: line.get(name) for name in NUMBERS} for line in lines],
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
        "trainable": all(p.requires_grad for p in model.parameters()),
        "sheets": sorted(path.name for path in (folder / "samples").glob("*")),
    }


def assert_alike(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """What `trained` gives of two runs is the same, to rounding."""
    assert found.keys() == expected.keys()
    for name in ("trainable", "sheets"):
        assert found[name] == expected[name], name
    assert found["trainable"]
    assert found["weights"] == pytest.approx(expected["weights"], rel=tolerance)
    assert len(found["log"]) == len(expected["log"]) > 6
    for ours, theirs in zip(found["log"], expected["log"], strict=True):
        # Rounding may turn an arg-max where two logits are as good as equal: one token of 128.
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
        rest = {name: value for name, value in theirs.items() if name != "accuracy"}
        assert {name: ours[name] for name in rest} == pytest.approx(rest, abs=tolerance)


def write_features(folder: Path, counts: dict[str, int]) -> None:
    """Random features of captions beside code shards."""
    draw = torch.Generator().manual_seed(3)
    for split, count in counts.items():
        lengths = torch.arange(count) % PREFIX + 1
        rows = torch.randn(int(lengths.sum()), TEXT_DIM, generator=draw).half()
        stored = {"features": rows, "lengths": lengths.int()}
        save_file(stored, folder / split / "text-00000.safetensors")
        text = {"prefix_length": PREFIX, "text_dim": TEXT_DIM, "shards": ["text-00000.safetensors"]}
        (folder / split / "text.json").write_text(json.dumps(text))
        captions = json.dumps([f"caption {index}" for index in range(count)])
        (folder / split / "captions-00000.json").write_text(captions)
        header = json.loads((folder / split / "codes.json").read_text())
        header["captions"] = ["captions-00000.json"]
        (folder / split / "codes.json").write_text(json.dumps(header))


def generator(
    folder: Path, recipe=STEADY, again: bool = False, held_out: int = HELD_OUT, **changes
) -> dict[str, object]:
    """A generator of the recipe's scheme, beside a pipeline that it may start from."""
    recipe = replace(recipe, **changes)
    source = build_scheme(recipe.scheme or "token")
    clustered = recipe.scheme.startswith("cluster")

    def write(place: Path) -> None:
        pairs = recipe.scheme == "semantic_detail"
        write_codes(place, source.vq_model, IMAGES, pairs, held_out)
        if recipe.condition == "text":
            write_features(place, {"train": IMAGES, "validation": held_out})
        if recipe.init_from:
            source.save_pretrained(recipe.init_from)

    codes = prepare(write, folder / "codes")
    parts = source.vq_model, source.cluster_map if clustered else None
    run = folder / "run"
    return trained(run, lambda out: train_generator(recipe, codes, *parts, out).transformer, again)


GROW = {0: 4, 2: 8, 4: "all"}


def plain(folder: Path) -> dict[str, object]:
    return generator(folder)


def grow(folder: Path, **changes) -> dict[str, object]:
    """A vocabulary that grows in three stages."""
    return generator(folder, grow=GROW, **changes)


def grow_again(folder: Path) -> dict[str, object]:
    """The same, gone on with inside its second stage."""
    return grow(folder, again=True)


def low_rank(folder: Path, **changes) -> dict[str, object]:
    """Low-rank updates of a generator of clusters, with prefix and head trained whole."""
    settings = {"scheme": "cluster", "lora_rank": 2, "lora_whole": ["prefix", "head"]} | changes
    return generator(folder, init_from=str(folder / "source"), **settings)


def low_rank_again(folder: Path) -> dict[str, object]:
    """The same, gone on with."""
    return low_rank(folder, again=True)


def text(folder: Path) -> dict[str, object]:
    """Text to image without a step that has the empty caption."""
    return generator(folder, condition="text")


def refiner(folder: Path, states: bool = False) -> dict[str, object]:
    """A refiner of clusters.

    Args:
        states: it reads a frozen generator's hidden states (MASC).
    """
    vq_model = build_vq()
    cluster_map = build_map(vq_model.codebook)
    counts = IMAGES, False, HELD_OUT
    codes = prepare(lambda place: write_codes(place, vq_model, *counts), folder / "codes")
    recipe = RefinerRecipe(
        hidden_size=32, num_attention_heads=2, intermediate_size=48, dropout=0.0, steps=6,
        learning_rate=1e-2, warmup=1, mixed_precision="no", tracker="none", log_every=1,
        class_prefix=not states, mask_to_members=states, causal=not states, **COMMON,
    )  # fmt: skip
    transformer = build_transformer(vocab_size=12, scheme="cluster") if states else None

    def train(out: Path) -> torch.nn.Module:
        return train_refiner(recipe, codes, vq_model, cluster_map, out, transformer)

    return trained(folder / "run", train)


def refiner_of_states(folder: Path) -> dict[str, object]:
    return refiner(folder, states=True)


STEADY_RUNS = {
    run.__name__: run
    for run in (plain, grow, grow_again, low_rank, low_rank_again, text, refiner, refiner_of_states)
}


def lively(**changes) -> Callable[[Path], dict[str, object]]:
    """A run with dropout, and one held-out image alone: a process has none."""
    return lambda folder: generator(folder, LIVELY, held_out=1, **changes)


LIVELY_RUNS = {
    "captions": lively(condition="text", context_noise="uniform"),
    "growing_clusters": lively(scheme="cluster", grow={0: 4, 1: 8, 3: "all"}),
    "sparse_head": lively(
        scheme="cluster_token", sparse_head=True, embedding_prior="both", alignment_weight=0.1
    ),
    "trees": lively(
        scheme="cluster_token", tree_loss_weight=0.1, context_noise="cluster",
        context_noise_clusters=8,
    ),
    "pairs": lively(
        scheme="semantic_detail", embedding_prior="context", alignment_weight=0.1,
        tree_loss_weight=0.1, context_noise="uniform",
    ),
    "low_rank_pairs": lambda folder: low_rank(
        folder, recipe=LIVELY, held_out=1, scheme="semantic_detail", lora_dropout=0.1, lora_whole=[]
    ),
}  # fmt: skip

if __name__ == "__main__":
    way, place, *names = sys.argv[1:]
    if way == "shards":
        shard_models()
    runs = STEADY_RUNS | LIVELY_RUNS
    found = {name: runs[name](Path(place) / name) for name in names}
    rank = Accelerator().process_index
    (Path(place) / f"rank-{rank}.json").write_text(json.dumps(found))
