"""Memory of encoding and of a generator's data at the settings of the shipped ImageNet recipe.

    python tests/benchmarks/memory.py encode --images 6
    python tests/benchmarks/memory.py generator --scale 64
    python tests/benchmarks/memory.py head --codes 16384 262144
    python tests/benchmarks/memory.py generate --limit 600MB --output pil

`encode` makes codes of photographs of noise with a tokenizer of VQ-16's shape (random weights) and
the settings of hub_configs/llamagen.yaml: the most memory depends on `batch_size`, not on how many
images there are. `generator` writes shards of one image in `--scale` of ImageNet (10 views, 576 ids
each, drawn at random), opens them as `train-generator` does, counts the ids and reads batches of
256, and says what the process holds then: memory of its own, and pages of the mapped shards, which
the system takes back when it needs them. `head` takes one training step of a "cluster_token" model
of one layer with all logits and with `sparse_head`, each in a process of its own, and says how much
memory the step added. `generate` makes images with `max_memory` and says
what was announced and what was taken.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer, VQModel
from codeclade.components.batch_memory import images_at_once, memory_limit
from codeclade.data.recipes import load_recipe
from codeclade.evaluation import speed
from codeclade.training.encode import EncodeRecipe, encode
from codeclade.training.generator import GeneratorRecipe, GeneratorTraining, baselines
from codeclade.training.run import Run
from codeclade.training.sparse_head import SparseClusterToken
from training import random_codes

IMAGENET, VIEWS, GRID = 1_281_167, 10, 24


def vq_16() -> VQModel:
    """A tokenizer of VQ-16's shape with random weights."""
    torch.manual_seed(0)
    return VQModel(
        block_out_channels=(128, 128, 256, 256, 512), layers_per_block=2, latent_channels=256,
        codebook_size=16384, codebook_dim=8, sample_size=256,
    ).eval()  # fmt: skip


def holds() -> dict[str, float]:
    """GB that this process holds: of its own, and of mapped files."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size.split()[0]) for name, size in (row.split(":") for row in rows)}  # KiB
    own = sizes["Anonymous"]
    return {"own": own * 1024 / 1e9, "mapped": (sizes["Rss"] - own) * 1024 / 1e9}


def most() -> float:
    """Most GB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def encode_noise(images: int, folder: Path) -> None:
    """Encode photographs of noise, 500 x 375 pixels as those of ImageNet are on average."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        place = folder / "photos" / split / "noise"
        place.mkdir(parents=True)
        for number in range(images):
            pixels = draw.integers(256, size=(375, 500, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.jpg")
    recipe = load_recipe(EncodeRecipe, "encode", "llamagen", [f"data={folder / 'photos'}"])
    vq_model = vq_16()
    print(f"before: {most():.2f} GB")
    encode(recipe, vq_model, folder / "codes")
    print(
        f"{images} images in {recipe.views} views of {recipe.image_size} pixels, "
        f"{recipe.batch_size} views at once: {most():.2f} GB at most"
    )


def read_batches(scale: int, folder: Path) -> None:
    """What a process holds that reads shards of ImageNet's number of images over `scale`."""
    images = IMAGENET // scale
    small = "hidden_size=64 num_hidden_layers=1 num_attention_heads=1 intermediate_size=64"
    settings = [*small.split(), "tracker=none"]
    recipe = load_recipe(GeneratorRecipe, "generator", "llamagen", settings)
    vq_model = vq_16()
    random_codes(folder / "codes", vq_model, GRID, images, VIEWS, 1000)
    before = holds()
    training = GeneratorTraining(recipe, folder / "codes", vq_model, None)
    run = Run(recipe, folder / "run")
    objective = training.objective()
    run.start(objective, torch.optim.AdamW(objective.parameters()))
    baselines(training.train, None)
    for number, _ in enumerate(run.steps(training.train)):
        if number == 2 * images // recipe.batch_size:  # two epochs
            break
    after = holds()
    shards = images * VIEWS * GRID**2 * 2 / 1e9
    print(
        f"{images:,} images, shards of {shards:.2f} GB: {before['own']:.2f} GB with torch and a "
        f"tokenizer, {after['own'] - before['own']:.2f} more while training reads, "
        f"{after['mapped']:.2f} mapped; all of ImageNet: labels of {IMAGENET * 8 / 1e9:.2f} GB, "
        f"shards of {shards * scale:.1f}"
    )


def head_step(codes: int, members: int, positions: int, sparse: bool) -> None:
    """Memory that one step's loss and gradients add, with clusters of `members` codes each."""
    torch.manual_seed(0)
    clusters, width = codes // members, 256
    config = CodecladeConfig(
        codes, "cluster_token", clusters, hidden_size=width, num_hidden_layers=1,
        num_attention_heads=4, intermediate_size=768, grid_size=16,
    )  # fmt: skip
    model = CodecladeTransformer(config)
    mapping = torch.randperm(codes) % clusters
    model.use_clusters(mapping)
    tokens = torch.randint(codes, (positions // 256, 256))
    condition = torch.zeros(len(tokens), dtype=torch.int64)
    before, start = most(), time.perf_counter()
    if sparse:
        hidden = model(tokens[:, :-1], condition, return_logits=False).last_hidden_state
        loss, _ = SparseClusterToken(mapping, clusters)(model.head, hidden, tokens)
    else:
        loss = model(tokens[:, :-1], condition, labels=tokens).loss
    loss.backward()
    print(
        f"{codes:,} codes in {clusters:,} clusters, {positions:,} positions, "
        f"{'sparse head' if sparse else 'all logits'}: loss {loss.item():.5f}, "
        f"{most() - before:.2f} GB added, {time.perf_counter() - start:.1f} s",
        flush=True,
    )


def generate_batches(limit: str, images: int, dtype: str, output_type: str) -> None:
    """What a call takes with `max_memory` beside what was announced: GPT-B's shape, 256 tokens."""
    torch.manual_seed(0)
    vq_model = vq_16().to(getattr(torch, dtype))
    config = CodecladeConfig(grid_size=16, num_classes=1000)
    transformer = CodecladeTransformer(config).eval().to(getattr(torch, dtype))
    pipe = CodecladePipeline(vq_model, transformer, guidance_scale=2.0)
    pipe.set_progress_bar_config(disable=True)
    decoder = vq_model if output_type == "pil" else None
    given = memory_limit(limit), images, transformer, True, decoder
    size, announced = images_at_once(*given)
    asked = {"max_memory": limit, "output_type": output_type}
    pipe([0], output_type=output_type)  # what is there for good after a first call
    before = sum(holds().values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    pipe([0] * images, **asked)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    print(
        f"{images} images in {dtype}, max_memory={limit}, {output_type}: {size} at once, "
        f"{announced / 1e9:.2f} GB announced, {peak - before:.2f} taken"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("encode")
    verb.add_argument("--images", type=int, default=6)
    verb = verbs.add_parser("generator")
    verb.add_argument("--scale", type=int, default=64)
    verb = verbs.add_parser("head")
    verb.add_argument("--codes", type=int, nargs="+", default=[16384, 262144])
    verb.add_argument("--members", type=int, default=64, help="codes a cluster")
    verb.add_argument("--positions", type=int, default=1024, help="a multiple of 256")
    verb = verbs.add_parser("generate")
    verb.add_argument("--limit", default="600MB", help="max_memory of the call")
    verb.add_argument("--images", type=int, default=8)
    # In bfloat16 oneDNN keeps a kernel for every length of the cache, which is no image's.
    verb.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    verb.add_argument("--output", default="pil", choices=("pil", "ids"))
    arguments = parser.parse_args()
    print(speed.machine("cpu"), vars(arguments), file=sys.stderr)
    if arguments.verb == "generate":
        generate_batches(arguments.limit, arguments.images, arguments.dtype, arguments.output)
        return
    if arguments.verb == "head":
        children = multiprocessing.get_context("spawn")  # each has a peak of its own
        for codes in arguments.codes:
            for sparse in (False, True):
                given = codes, arguments.members, arguments.positions, sparse
                child = children.Process(target=head_step, args=given)
                child.start()
                child.join()
                if child.exitcode:
                    sys.exit(child.exitcode)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.verb == "encode":
            encode_noise(arguments.images, Path(folder))
        else:
            read_batches(arguments.scale, Path(folder))


if __name__ == "__main__":
    main()
