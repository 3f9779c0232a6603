"""Many images of a pipeline, by many processes, resumable, in bounded memory.

Every image has seeds of its own, functions of its number, so that the set does not depend on how
many processes made it or in which batches. Images are written in parts of 64, each whole or not at
all; a run that was stopped goes on with the parts that are missing. `write_npz` joins parts to the
file that ADM's evaluator reads (guided-diffusion, evaluations/evaluator.py): `arr_0`, (N, S, S, 3)
uint8. `write_parquet` joins them to one that `load_dataset` reads.

Shapes: N images of S pixels a side.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..components.generation import ids_to_pixels
from ..components.guidance import Schedule
from ..components.pipeline import CodecladePipeline
from ..components.text_pipeline import CodecladeTextPipeline
from ..data.atomic import new_file
from ..data.prompts import Prompts
from ..metrics.networks import state_fingerprint
from .rejection import Judge
from .resize import eight_bit

PART = 64  # images of one file: 28 MB at 384 pixels
# Image i of seed s has seed s * SEED_STEP + i. The step is small because of every seed PyTorch's
# generator of the CPU reads 32 bits alone.
SEED_STEP = 1_000_003
CLASSES = ("balanced", "random")
Pipeline = CodecladePipeline | CodecladeTextPipeline


@dataclass(frozen=True)
class Sampling:
    """What decides every image of a set, beside the pipeline.

    Args:
        count: images of one class, on average, or of one prompt.
        classes: "balanced", exactly `count` of every class, sorted by class, or "random".
        size: side of the written images; None: as sampled.
        plain_resize: to `size` without antialiasing and before values are clamped, see
            `eight_bit`.
        guidance_scale, guidance_schedule, temperature, top_k, top_p: None: the pipeline's default.
        draws: images drawn for every one that is kept, see rejection.py.
        prompts: of a pipeline that takes captions; `classes` plays no part then.
        limit: images of the whole set at most, evenly spread over it; None: all.
    """

    count: int = 16
    seed: int = 0
    classes: str = "balanced"
    size: int | None = None
    plain_resize: bool = False
    guidance_scale: float | tuple[float, ...] | None = None
    guidance_schedule: str | dict | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    draws: int = 1
    prompts: Prompts | None = None
    limit: int | None = None

    def __post_init__(self):
        if self.classes not in CLASSES:
            raise ValueError(f"--classes {self.classes} must be one of {', '.join(CLASSES)}.")
        Schedule(self.guidance_schedule)

    def settings(self, pipe: Pipeline) -> dict[str, Any]:
        """What is given to the pipeline's call, its defaults filled in."""
        names = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p")
        given = {name: getattr(self, name) for name in names}
        return {name: pipe.config[name] if x is None else x for name, x in given.items()}

    def labels(self, pipe: Pipeline) -> Tensor:
        """Class, or number of the prompt, (N,) of every image."""
        kinds = len(self.prompts.texts) if self.prompts else pipe.transformer.config.num_classes
        if self.classes == "random" and not self.prompts:
            draws = torch.Generator().manual_seed(self.seed)
            found = torch.randint(kinds, (self.count * kinds,), generator=draws)
        else:
            found = torch.arange(kinds).repeat_interleave(self.count)
        if self.limit is None or len(found) <= self.limit:
            return found
        return found[torch.arange(self.limit) * len(found) // self.limit]

    @property
    def seeds(self) -> str:
        """The rule of the seeds, in words."""
        if self.draws == 1:
            return f"image i (from 0): seed {self.seed} * {SEED_STEP} + i"
        rule = f"seed {self.seed} * {SEED_STEP} + {self.draws} * i + j"
        return f"draw j of image i (from 0): {rule}"

    def generators(self, numbers: list[int], draw: int) -> list[torch.Generator]:
        """One draw's random numbers of the images with these numbers."""
        first = self.seed * SEED_STEP + draw
        return [torch.Generator().manual_seed(first + self.draws * i) for i in numbers]


def class_names_of(pipe: CodecladePipeline) -> list[str]:
    """Names of a pipeline's classes, in order.

    Raises:
        ValueError: a pipeline without class names.
    """
    if not pipe.config.id2label:
        raise ValueError("this pipeline has no class names (id2label) to find in the data.")
    return [pipe.config.id2label[str(i)] for i in range(pipe.transformer.config.num_classes)]


def image_side(pipe: Pipeline) -> int:
    """Side of the images that a pipeline samples, in pixels."""
    return pipe.transformer.config.grid_size * pipe.vq_model.downsample


def check_settings(pipe: Pipeline, sampling: Sampling) -> None:
    """Raise a ValueError that names the first setting that this pipeline does not take."""
    found = sampling.settings(pipe)
    filters = [found[name] for name in ("temperature", "top_k", "top_p")]
    pipe.check_inputs(found["guidance_scale"], *filters, 1, "pt")


@torch.no_grad()
def sample_images(
    pipe: Pipeline,
    sampling: Sampling,
    numbers: list[int],
    labels: Tensor,
    judge: Judge | None = None,
) -> Tensor:
    """Images (n, 3, S, S) uint8 with the given numbers of a set.

    Args:
        labels: (N,) classes, or numbers of the prompts, of the whole set.
        judge: chooses among several draws.
    """
    chosen, settings = labels[numbers], sampling.settings(pipe)
    conditions: list[Any] = chosen.tolist()
    if sampling.prompts:
        conditions = [sampling.prompts.texts[i] for i in conditions]

    def drawn(draw: int) -> Tensor:
        given = {"generator": sampling.generators(numbers, draw), **settings}
        # LlamaGen's script resizes what its decoder gives; all others resize images.
        if sampling.plain_resize:
            ids = pipe(conditions, output_type="ids", **given).images
            pixels = ids_to_pixels(ids, pipe.vq_model)
        else:
            pixels = pipe(conditions, output_type="pt", **given).images * 2 - 1
        return eight_bit(pixels, sampling.size or pixels.shape[-1], sampling.plain_resize)

    # One draw of all images at a time, so that memory does not grow with the draws. Of equally
    # probable ones the first is kept.
    images = drawn(0)
    if judge is not None:
        best = judge(images, chosen)
        for draw in range(1, sampling.draws):
            others = drawn(draw)
            found = judge(others, chosen)
            better = found > best
            images[better], best[better] = others[better], found[better]
    return images


class SampleParts:
    """A set of images on disk, in parts.

    Args:
        folder: beside which the parts are kept, under a name of their own for every pipeline and
            sampling, so that parts of different sets are never mixed.
        judge: needed where `sampling` has several draws.
    """

    def __init__(
        self, folder: Path, pipe: Pipeline, sampling: Sampling, judge: Judge | None = None
    ):
        if (judge is None) != (sampling.draws == 1):
            raise ValueError(f"{sampling.draws} draws an image: several need a judge, one none.")
        self.pipe, self.sampling, self.judge = pipe, sampling, judge
        self.labels = sampling.labels(pipe)
        weights = [pipeline_fingerprint(pipe), judge and judge.network.fingerprint]
        what = json.dumps([weights, asdict(sampling), sampling.settings(pipe)])
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
        # A part is of one process whoever made those that are there already.
        mine = [part for part in self.missing if part % world_size == rank]
        numbers_of = {
            part: list(range(part * PART, min((part + 1) * PART, len(self)))) for part in mine
        }
        total = sum(map(len, numbers_of.values()))
        quiet = {"disable": True} if rank else {}  # else as TQDM_DISABLE says
        bar = tqdm(total=total, desc="generate", unit="image", **quiet)
        for part, numbers in numbers_of.items():
            images = []
            for start in range(0, len(numbers), batch_size):
                some = numbers[start : start + batch_size]
                found = sample_images(self.pipe, self.sampling, some, self.labels, self.judge)
                images.append(found)
                bar.update(len(some))
            rows = torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()  # (n, S, S, 3)
            with new_file(self.path(part)) as partial, partial.open("wb") as file:
                np.save(file, rows)
        bar.close()

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

    def write_parquet(self, path: Path) -> None:
        """Join all parts to rows of `image` (PNG, so exact) and `label`, or `prompt` of a pipeline
        of captions; memory for one part alone, which is a row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import ClassLabel, Features, Value
        from datasets import Image as ImageFeature

        # The schema says what the columns are, names of the classes included.
        prompts = self.sampling.prompts
        if prompts:
            name, kind = "prompt", Value("string")
        elif self.pipe.config.id2label:
            name, kind = "label", ClassLabel(names=class_names_of(self.pipe))
        else:
            name, kind = "label", Value("int64")
        schema = Features({"image": ImageFeature(), name: kind}).arrow_schema
        with new_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
            for images, labels in self.batches():
                rows = [{"bytes": _png(image), "path": None} for image in images]
                numbers = labels.tolist()
                values = [prompts.texts[i] for i in numbers] if prompts else numbers
                writer.write_table(pa.table({"image": rows, name: values}, schema=schema))

    def delete(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder)


def _png(image: Tensor) -> bytes:
    """An image (3, S, S) uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def pipeline_fingerprint(pipe: Pipeline) -> str:
    """sha256 over the weights of all components and their dtypes."""
    parts = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    return hashlib.sha256(
        "".join(state_fingerprint(module.state_dict()) for module in parts).encode()
    ).hexdigest()
