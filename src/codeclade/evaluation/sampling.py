"""Many images of a pipeline, by many processes, resumable, in bounded memory.

Every image has a seed of its own, a function of its number, so that the set does not depend on how
many processes made it or in which batches. Images are written in parts of 64, each whole or not at
all; a run that was stopped goes on with the parts that are missing. `write_npz` joins parts to the
file that ADM's evaluator reads (guided-diffusion, evaluations/evaluator.py): `arr_0`, (N, S, S, 3)
uint8.

Shapes: N images of S pixels a side.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..components.guidance import Schedule
from ..components.pipeline import CodecladePipeline
from ..data.atomic import new_file
from ..metrics.networks import state_fingerprint
from .reconstruction import eight_bit

PART = 64  # images of one file: 28 MB at 384 pixels
SEED_STEP = 1_000_003  # image i of seed s has seed s * SEED_STEP + i
CLASSES = ("balanced", "random")


@dataclass(frozen=True)
class Sampling:
    """What decides every image of a set, beside the pipeline.

    Args:
        count: images of one class, on average.
        classes: "balanced", exactly `count` of every class, sorted by class, or "random".
        size: side of the written images; None: as sampled.
        guidance_scale, guidance_schedule, temperature, top_k, top_p: None: the pipeline's default.
    """

    count: int = 16
    seed: int = 0
    classes: str = "balanced"
    size: int | None = None
    guidance_scale: float | tuple[float, ...] | None = None
    guidance_schedule: str | dict | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.classes not in CLASSES:
            raise ValueError(f"--classes {self.classes} must be one of {', '.join(CLASSES)}.")
        Schedule(self.guidance_schedule)

    def settings(self, pipe: CodecladePipeline) -> dict[str, Any]:
        """What is given to the pipeline's call, its defaults filled in."""
        names = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")
        given = {name: getattr(self, name) for name in names}
        return {name: pipe.config[name] if x is None else x for name, x in given.items()}

    def labels(self, pipe: CodecladePipeline) -> Tensor:
        """Class (N,) of every image."""
        classes = pipe.transformer.config.num_classes
        if self.classes == "random":
            draws = torch.Generator().manual_seed(self.seed)
            return torch.randint(classes, (self.count * classes,), generator=draws)
        return torch.arange(classes).repeat_interleave(self.count)

    @property
    def seeds(self) -> str:
        """The rule of the seeds, in words."""
        return f"image i (from 0): seed {self.seed} * {SEED_STEP} + i"


def image_side(pipe: CodecladePipeline) -> int:
    """Side of the images that a pipeline samples, in pixels."""
    return pipe.transformer.config.grid_size * pipe.vq_model.downsample


def check_settings(pipe: CodecladePipeline, sampling: Sampling) -> None:
    """Raise a ValueError that names the first setting that this pipeline does not take."""
    found = sampling.settings(pipe)
    filters = [found[name] for name in ("temperature", "top_k", "top_p")]
    pipe.check_inputs(found["guidance_scale"], *filters, 1, "pt")


def sample_images(
    pipe: CodecladePipeline, sampling: Sampling, numbers: list[int], labels: Tensor
) -> Tensor:
    """Images (n, 3, S, S) uint8 with the given numbers of a set.

    Args:
        labels: (N,) classes of the whole set.
    """
    first = sampling.seed * SEED_STEP
    pixels = pipe(
        labels[numbers].tolist(),
        generator=[torch.Generator().manual_seed(first + number) for number in numbers],
        output_type="pt",
        **sampling.settings(pipe),
    ).images
    return eight_bit(pixels * 2 - 1, sampling.size or pixels.shape[-1])


class SampleParts:
    """A set of images on disk, in parts.

    Args:
        folder: beside which the parts are kept, under a name of their own for every pipeline and
            sampling, so that parts of different sets are never mixed.
    """

    def __init__(self, folder: Path, pipe: CodecladePipeline, sampling: Sampling):
        self.pipe, self.sampling = pipe, sampling
        self.labels = sampling.labels(pipe)
        what = json.dumps([pipeline_fingerprint(pipe), asdict(sampling), sampling.settings(pipe)])
        digest = hashlib.sha256(what.encode()).hexdigest()[:16]
        self.folder = folder / f".samples-{digest}"

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.npy"

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        return [part for part in range(-(-len(self) // PART)) if not self.path(part).is_file()]

    def make(self, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        """Write this process's share of all parts, those that are there left alone."""
        self.folder.mkdir(exist_ok=True)
        mine = [part for part in self.missing if part % world_size == rank]
        for part in tqdm(mine, "generate", unit="part") if rank == 0 else mine:
            numbers = list(range(part * PART, min((part + 1) * PART, len(self))))
            batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
            images = [
                sample_images(self.pipe, self.sampling, some, self.labels) for some in batches
            ]
            rows = torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()  # (n, S, S, 3)
            with new_file(self.path(part)) as partial, partial.open("wb") as file:
                np.save(file, rows)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images (n, 3, S, S) uint8 with their labels (n,), a part at a time."""
        for part, labels in enumerate(self.labels.split(PART)):
            yield torch.from_numpy(np.load(self.path(part))).permute(0, 3, 1, 2), labels

    def write_npz(self, path: Path) -> None:
        """Join all parts to `arr_0` (N, S, S, 3) uint8; memory for one part alone."""
        shape = (len(self), *np.load(self.path(0), mmap_mode="r").shape[1:])
        with (
            new_file(path) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for images, _ in self.batches():
                member.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    def delete(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder)


def pipeline_fingerprint(pipe: CodecladePipeline) -> str:
    """sha256 over the weights of all components and their dtypes."""
    parts = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    return hashlib.sha256(
        "".join(state_fingerprint(module.state_dict()) for module in parts).encode()
    ).hexdigest()
