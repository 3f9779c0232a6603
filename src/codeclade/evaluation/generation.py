"""How good a pipeline's images are: reconstructions, distance to photographs, class accuracy.

Feature distances use EfficientNet-Lite0 (ImageNet weights, extra `eval`) on 224 pixels, not the
Inception network of FID: compare them among themselves only, with the floor of photographs against
photographs beside them. `save_npz` writes what ADM's evaluator of the published FIDs reads.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..components.pipeline import CodecladePipeline
from ..data.atomic import new_file
from ..data.imagenet import class_names, synset_names
from ..data.images import LabeledImages, load_images, plain_batches
from ..data.pixels import to_pixels, to_uint8
from ..metrics.distances import frechet_distance, kernel_distance
from ..metrics.features import FEATURE_SIZE, Features
from ..metrics.image_quality import psnr, ssim


@dataclass
class Protocol:
    """What a measurement depends on beside the pipeline."""

    data: str  # image folder, parquet folder or Hub dataset
    images: int = 16  # generated a class
    seed: int = 0
    guidance_scale: float | None = None  # None: the pipeline's default
    batch_size: int = 32


def match_classes(names: list[str], own: list[str]) -> dict[str, str]:
    """The source's name of every class of a pipeline: {source's: pipeline's}.

    Args:
        names: the source's class names; WordNet ids stand for their ImageNet names.
        own: the pipeline's names, synonyms separated by commas.

    Raises:
        ValueError: a class that the source does not have, or two that are one there.
    """
    lemmas = synset_names()
    if own == class_names() and set(lemmas) <= set(names):  # "crane" names two of the 1000
        return dict(zip(lemmas, own, strict=True))
    # Every synonym of a class of the source leads to it; the first source class keeps a synonym.
    known = {}
    for name in names:
        for synonym in [name, *name.split(","), *lemmas.get(name, "").split(",")]:
            known.setdefault(synonym.strip().lower(), name)

    # A class of the pipeline is the first of its synonyms that the source knows.
    found = {}
    for label in own:
        match = [known[s.strip().lower()] for s in label.split(",") if s.strip().lower() in known]
        if not match:
            raise ValueError(f"the data has no class {label!r}; it has {', '.join(names[:8])}, ...")
        found[match[0]] = label
    if len(found) < len(own):
        raise ValueError("two classes of the pipeline are the same class of the data.")
    return found


def generate(pipe: CodecladePipeline, protocol: Protocol) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 8-bit images (B, 3, S, S) and their labels, one seed an image."""
    labels = torch.arange(pipe.transformer.config.num_classes).repeat_interleave(protocol.images)
    for start in tqdm(range(0, len(labels), protocol.batch_size), desc="generate", unit="batch"):
        part = labels[start : start + protocol.batch_size]
        seeds = [protocol.seed * 1_000_003 + start + i for i in range(len(part))]
        images = pipe(
            part.tolist(),
            guidance_scale=protocol.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        yield (images.cpu() * 255).round().to(torch.uint8), part


@torch.no_grad()
def evaluate(pipe: CodecladePipeline, protocol: Protocol, npz: Path | None = None) -> list[dict]:
    """All numbers, each with its protocol in words, as evaluation.json holds them.

    Raises:
        ValueError: a pipeline without class names, or data without these classes.
    """
    if not pipe.config.id2label:
        raise ValueError("this pipeline has no class names (id2label) to find in the data.")
    side = pipe.transformer.config.grid_size * pipe.vq_model.downsample
    own = [pipe.config.id2label[str(i)] for i in range(pipe.transformer.config.num_classes)]
    there = load_images(protocol.data, "validation", side).class_names
    photographs = load_images(protocol.data, "validation", side, match_classes(there, own))
    features = Features(pipe.device)
    real, rebuilt, quality, used = _photographs(pipe, photographs, features)
    made, pictures = [], []
    for images, labels in generate(pipe, protocol):
        made.append((*features(to_pixels(images)), labels))
        pictures += [images] if npz else []
    made = [torch.cat(parts) for parts in zip(*made, strict=True)]
    if npz:
        save_npz(torch.cat(pictures), npz)
    name = Path(protocol.data).name if os.path.exists(protocol.data) else protocol.data
    rows = _reconstruction_rows(quality, used, len(real[2]))
    rows += _generation_rows(made, rebuilt, real, pipe.config, protocol)
    return [_result(*row, name, pipe) for row in rows]


Row = tuple[str, float, str, str]  # metric, value, unit, protocol


def _reconstruction_rows(quality: dict[str, float], used: float, count: int) -> list[Row]:
    words = f"8-bit, mean over {count:,} validation photographs"
    return [
        ("PSNR of reconstructions", quality["psnr"], " dB", words),
        ("SSIM of reconstructions", quality["ssim"], "", words),
        ("Codebook usage", 100 * used, " %", f"ids that occur in {count:,} validation photographs"),
    ]


def _generation_rows(made, rebuilt, real, config, protocol: Protocol) -> list[Row]:
    """Distances to photographs and class accuracy; parts are features, logits and labels."""
    # Distances; the floor is what one half of the photographs is from the other.
    scale = protocol.guidance_scale
    scale = config.guidance_scale if scale is None else scale
    sampled = f"{len(made[2]):,} generated images, guidance {scale:g}, seed {protocol.seed}"
    words = f"EfficientNet-Lite0 features at {FEATURE_SIZE} pixels, {sampled}, "
    words += f"{len(real[2]):,} validation photographs; "
    floor = kernel_distance(real[0][1::2], real[0][::2])
    words_floor = f"floor of photographs against photographs {floor:.2g}"
    rows = [
        ("KID", kernel_distance(made[0], real[0]), "", words + words_floor),
        (
            "Frechet distance",
            frechet_distance(made[0], real[0]),
            "",
            f"{words}not FID, and biased by the number of images",
        ),
    ]

    # Class accuracy, where all classes are ImageNet's.
    own = [config.id2label[str(i)] for i in range(len(config.id2label))]
    classes = _imagenet_indices(own)
    if classes is not None:
        told = [_accuracy(part, classes) for part in (made, rebuilt, real)]
        words = f"EfficientNet-Lite0 among {len(own)} classes, {sampled}; reconstructions "
        words += f"{told[1]:.1f} %, photographs {told[2]:.1f} %, chance {100 / len(own):.1f} %"
        rows.append(("Class accuracy", told[0], " %", words))
    return rows


def _photographs(pipe, photographs: LabeledImages, features: Features):
    """Features of photographs and reconstructions, mean PSNR and SSIM, share of ids in use."""
    real, rebuilt, scores, seen = [], [], [], torch.zeros(pipe.vq_model.codebook_size, dtype=bool)
    total = -(-len(photographs) // 32)
    for batch, labels in tqdm(plain_batches(photographs, 32), "reconstruct", total, unit="batch"):
        pixels = to_pixels(batch)
        ids = pipe.vq_model.encode(pixels.to(pipe.device, pipe.vq_model.dtype)).ids
        decoded = to_pixels(to_uint8(pipe.vq_model.decode(ids).cpu()))  # as files would hold them
        scores.append(torch.stack([psnr(decoded, pixels), ssim(decoded, pixels)], dim=1))
        seen[(ids if ids.ndim == 3 else ids[..., 0]).flatten().cpu()] = True
        real.append((*features(pixels), labels))
        rebuilt.append((*features(decoded), labels))
    real, rebuilt = ([torch.cat(p) for p in zip(*part, strict=True)] for part in (real, rebuilt))
    mean = torch.cat(scores).mean(0)
    quality = {"psnr": mean[0].item(), "ssim": mean[1].item()}
    return real, rebuilt, quality, seen.float().mean().item()


def _imagenet_indices(own: list[str]) -> list[int] | None:
    """ImageNet's index of every class; None where one of them is no ImageNet class."""
    ids = list(synset_names())
    try:
        return [ids.index(name) for name in match_classes(ids, own)]
    except ValueError:
        return None


def _accuracy(part: list[Tensor], classes: list[int]) -> float:
    """Percentage whose label is the arg-max among `classes`."""
    _, logits, labels = part
    return 100 * (logits[:, classes].argmax(1) == labels).float().mean().item()


def _result(metric: str, value: float, unit: str, protocol: str, data: str, pipe) -> dict[str, Any]:
    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    machine = f"{pipe.device.type}, {dtype} transformer"
    return {
        "metric": metric,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "dataset": data,
        "split": "validation",
        "protocol": f"{protocol}; torch {torch.__version__}, {machine}",
    }


def save_npz(images: Tensor, path: Path) -> None:
    """Images (N, 3, S, S) uint8 as the `arr_0` (N, S, S, 3) that ADM's evaluator reads."""
    with new_file(path) as partial, partial.open("wb") as file:  # an open file keeps its name
        np.savez(file, images.permute(0, 2, 3, 1).contiguous().numpy())
