"""Pictures of the bundled pipeline in README, its card and docs/quick_start.md.

    python tests/benchmarks/pictures.py

writes hub_configs/tiny-imagenet-64.png (what `make demo` draws), samples.png beside the card, and
docs/editing.png.
"""

import subprocess
import sys
from pathlib import Path

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.data.sheets import contact_sheet

ROOT = Path(__file__).parents[2]
CLASSES = (
    "goldfish", "golden retriever", "ladybug", "jellyfish", "school bus", "lakeside",
    "coral reef", "espresso",
)  # fmt: skip


def generate(*words: str | Path) -> None:
    """`codeclade generate`, as users call it."""
    subprocess.run([sys.executable, "-m", "codeclade", "generate", *map(str, words)], check=True)


def editing(path: Path) -> None:
    """Four pictures, and what every way of editing makes of them, a row each."""
    pipe = CodecladePipeline.from_pretrained(bundled())
    pipe.set_progress_bar_config(disable=True)

    def seeds(first: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(first + i) for i in range(4)]

    ids = pipe(["coral reef"] * 4, generator=seeds(0), output_type="ids").images
    side = pipe.vq_model.config.sample_size
    lower = torch.zeros(1, side, side)
    lower[:, side // 2 :] = 1
    attention = {"name": "attention", "start": 1.5, "weight": 0.5}
    rows = {
        "coral reef": pipe(["coral reef"] * 4, generator=seeds(0)).images,
        "lower half goldfish": pipe(
            ["goldfish"] * 4, ids=ids, mask_image=lower, generator=seeds(4)
        ).images,
        "redraw details": pipe.redraw(
            ids=ids, class_labels=["coral reef"] * 4, generator=seeds(8)
        ).images,
        "lakeside, strength .4": pipe(
            ["lakeside"] * 4, ids=ids, strength=0.4, generator=seeds(12)
        ).images,
        "attention schedule": pipe(
            ["coral reef"] * 4, generator=seeds(0), guidance_schedule=attention
        ).images,
    }
    contact_sheet(list(rows.items()), 2).save(path)


if __name__ == "__main__":
    generate("--out", ROOT / "hub_configs" / "tiny-imagenet-64.png")
    generate(*CLASSES, "--images", "4", "--out", Path(bundled()) / "samples.png")
    editing(ROOT / "docs" / "editing.png")
