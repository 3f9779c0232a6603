"""Small tokenizers that differ in one thing: what LPIPS, a discriminator and a second codebook do.

    python tests/benchmarks/tokenizer_runs.py train pixel adversarial --data DIR --out RUNS
    python tests/benchmarks/tokenizer_runs.py measure --data DIR --out RUNS
    python tests/benchmarks/tokenizer_runs.py sheet --data DIR --out RUNS

`train` makes runs of docs/tokenizers/recipe.yaml with the settings below, each of which goes on
when it is called again; `measure` writes docs/tokenizers/tokenizers.json; `sheet` draws
docs/tokenizers/sheet.jpg.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from codeclade import VQModel
from codeclade.data.images import load_images
from codeclade.data.pixels import to_image, to_pixels, to_uint8
from codeclade.data.sheets import contact_sheet
from codeclade.evaluation.reconstruction import reconstruct
from codeclade.evaluation.reference import Photographs
from codeclade.metrics.lpips_weights import load_lpips

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tokenizers"
MEASURED, SHOWN = 250, 8  # validation photographs, evenly spread over the classes
ROWS = ("pixel", "adversarial", "single-ema", "joint-ema")  # of the sheet

PIXELS = ("perceptual=none", "perceptual_weight=0", "discriminator_weight=0")
PAIR = ("codebook_size=256", "detail_codebook_size=4096")  # IAR2's sizes
IDS = ("codebook_size=4352",)  # as many rows in one codebook
MEANS = ("codebook_update=ema", "codebook_decay=0.95")
JOINT = ("stage=joint", "steps=600", "discriminator_start=300")
# Name: settings, and the run whose weights it starts from.
RUNS = {
    "pixel": (PIXELS, None),
    "lpips": (("discriminator_weight=0",), None),
    "adversarial": ((), None),
    "single": (IDS, None),
    "single-ema": ((*IDS, *MEANS), None),
    # IAR2's two stages, together as many steps as the others.
    "semantic": (
        (*PAIR, "stage=semantic", "steps=200", "perceptual_weight=1", "discriminator_weight=0",
         "final_learning_rate=8e-4"),
        None,
    ),
    "pair": ((*PAIR, *JOINT), "semantic"),
    "pair-ema": ((*PAIR, *JOINT, *MEANS), "semantic"),
    # Both codebooks from the first step.
    "joint-ema": ((*PAIR, *MEANS), None),
}  # fmt: skip


def train(name: str, data: str, out: Path) -> None:
    """One run by the command line."""
    settings, start = RUNS[name]
    words = ["train-tokenizer", "--recipe", FOLDER / "recipe.yaml", "--fetch-lpips"]
    words += ["--out", out / name, f"data={data}", *settings]
    words += [f"init_from={out / start}"] if start else []
    subprocess.run([sys.executable, "-m", "codeclade", *map(str, words)], check=True)


def held_out(data: str, count: int) -> Photographs:
    """Photographs that are evenly spread over the validation split."""
    images = load_images(data, "validation", 64)
    return Photographs(images, "zh-plus/tiny-imagenet", "validation", 0).few(count)


def finished(out: Path) -> dict[str, VQModel]:
    """Tokenizers of the runs that have ended, by name."""
    folders = {name: out / name / "vq_model" for name in RUNS}
    return {k: VQModel.from_pretrained(v).eval() for k, v in folders.items() if v.is_dir()}


def measure(data: str, out: Path) -> None:
    """PSNR, SSIM and LPIPS of the same photographs for every finished run."""
    photographs = held_out(data, MEASURED)
    alex, vgg = load_lpips("alex"), load_lpips("vgg")
    rows = {}
    for name, model in finished(out).items():
        values = {}
        for network in (alex, vgg):
            found = reconstruct(model, photographs, 64, 25, lpips=network)
            values |= {key: float(one.mean()) for key, one in found.per_image.items()}
        values |= {"images": MEASURED, "usage": found.use.usage, "perplexity": found.use.perplexity}
        if found.detail_use is not None:
            values["detail usage"] = found.detail_use.usage
        rows[name] = {key: round(value, 4) for key, value in values.items()}
        print(name, rows[name], flush=True)
    (FOLDER / "tokenizers.json").write_text(json.dumps(rows, indent=1) + "\n")


@torch.no_grad()
def sheet(data: str, out: Path) -> None:
    """Photographs, and below them what finished runs of `ROWS` make of them."""
    images = held_out(data, SHOWN).images
    pixels = torch.stack([images[i, None][0] for i in range(len(images))])
    rows = {"photographs": pixels}
    for name, model in finished(out).items():
        if name in ROWS:
            rows[name] = to_uint8(model(to_pixels(pixels)))
    shown = [(caption, list(map(to_image, row))) for caption, row in rows.items()]
    contact_sheet(shown, 2).save(FOLDER / "sheet.jpg", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("train", "measure", "sheet"):
        one = verbs.add_parser(verb)
        one.add_argument("--data", default="zh-plus/tiny-imagenet", help="folder or Hub id")
        one.add_argument("--out", type=Path, default=ROOT / "runs" / "tokenizers")
        if verb == "train":
            one.add_argument("names", nargs="+", choices=RUNS)
    arguments = parser.parse_args()
    if arguments.verb == "train":
        for name in arguments.names:
            train(name, arguments.data, arguments.out)
    else:
        {"measure": measure, "sheet": sheet}[arguments.verb](arguments.data, arguments.out)


if __name__ == "__main__":
    main()
