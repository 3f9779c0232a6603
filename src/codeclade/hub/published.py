"""Published checkpoint files to pipeline repositories, and back to the published key names.

LlamaGen (arXiv 2406.06525), DCPE (arXiv 2508.10719), IAR and IAR2. Sampling defaults are those of
the projects' own evaluation, by width of the generator.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.pipeline import CodecladePipeline
from ..components.vq_model import VQModel
from ..data.atomic import new_folder
from . import convert
from .dcpe import cluster_map_from_dcpe, refiner_from_dcpe, refiner_to_dcpe
from .imagenet import class_names

# Guidance of the published evaluations by width: B 768, L 1024, XL 1280, XXL 1536, 3B 3200.
LLAMAGEN_GUIDANCE = {768: 2.0, 1024: 2.0, 1280: 1.75, 1536: 1.75, 3200: 1.65}
DCPE_GUIDANCE = {768: 2.0, 1024: 1.85, 1280: 1.85}
IAR_GUIDANCE = LLAMAGEN_GUIDANCE | {768: 2.25}
TEXT_SAMPLING = {"guidance_scale": 7.5, "top_k": 1000}
IAR2_SAMPLING = {
    "guidance_scale": 3.0,
    "guidance_schedule": {"name": "attention", "start": 1.75, "weight": 0.05},
}
OTHER_GUIDANCE = 2.0  # sizes without a published value

IAR_COHERENCE = 0.5  # mean cosine of neighbouring rows; IAR's order has 0.86 and more, others ~0


@dataclass
class Conversion:
    """What a set of published files became."""

    pipeline: CodecladePipeline
    method: str  # LlamaGen, DCPE, IAR or IAR2
    sources: list[Path]


def _build(path: str | Path, build: Callable, **settings: Any):
    """`build` on the weights of a file; errors name the file."""
    weights = convert.load_checkpoint(path)
    try:
        return build({key: value.contiguous() for key, value in weights.items()}, **settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _grid(image_size: int, vq_model: VQModel) -> int:
    factor = vq_model.downsample
    if image_size <= 0 or image_size % factor:
        raise ValueError(
            f"image size {image_size} does not fit this tokenizer: give a positive multiple of "
            f"{factor}."
        )
    return image_size // factor


def _labels(num_classes: int) -> dict[int, str]:
    """ImageNet's names where there are 1000 classes, else none."""
    return dict(enumerate(class_names())) if num_classes == 1000 else {}


def convert_llamagen(
    vq: str | Path, gpt: str | Path, image_size: int, heads: int | None = None
) -> Conversion:
    """LlamaGen's tokenizer and generator, class- or text-conditional, as a pipeline.

    Args:
        vq: vq_ds16_c2i.pt, vq_ds8_c2i.pt or vq_ds16_t2i.pt.
        gpt: c2i_*.pt or t2i_*.pt.
        image_size: side in pixels the generator was trained for; it is not in the file.
        heads: attention heads, for a width that is no published size.

    Raises:
        ValueError: files that are damaged, of another architecture, or do not fit together.
    """
    vq_model = _build(vq, convert.vq_model_from_llamagen)
    transformer = _build(
        gpt,
        convert.transformer_from_llamagen,
        grid_size=_grid(image_size, vq_model),
        num_attention_heads=heads,
    )
    if transformer.config.text_dim:
        from ..components.text_pipeline import CodecladeTextPipeline

        pipeline = CodecladeTextPipeline(vq_model, transformer, **TEXT_SAMPLING)
    else:
        pipeline = CodecladePipeline(
            vq_model,
            transformer,
            id2label=_labels(transformer.config.num_classes),
            guidance_scale=LLAMAGEN_GUIDANCE.get(transformer.config.hidden_size, OTHER_GUIDANCE),
        )
    return Conversion(pipeline, "LlamaGen", [Path(vq), Path(gpt)])


def convert_dcpe(
    vq: str | Path,
    gpt: str | Path,
    idx_to_cluster: str | Path,
    refiner: str | Path | None = None,
    image_size: int = 256,
    heads: int | None = None,
) -> Conversion:
    """DCPE's generator over clusters, with its own cluster index and, if given, its refine net.

    Args:
        vq: LlamaGen's tokenizer.
        gpt: DCPE-*.pt.
        idx_to_cluster: idx_to_cluster.pt that came with it; never recomputed, since published
            indices may differ in a few merges from an exact clustering.
        refiner: the refine net's file.
        image_size, heads: as for `convert_llamagen`; the heads also hold for the refine net.

    Raises:
        ValueError: files that are damaged, of another architecture, or do not fit together.
    """
    vq_model = _build(vq, convert.vq_model_from_llamagen)
    grid_size = _grid(image_size, vq_model)
    transformer = _build(
        gpt, convert.transformer_from_llamagen, grid_size=grid_size, num_attention_heads=heads
    )
    transformer.config.scheme = "cluster"
    try:
        index = convert.load_mapping(idx_to_cluster)
        cluster_map = cluster_map_from_dcpe(index, vq_model.codebook)
    except ValueError as error:
        raise ValueError(f"{idx_to_cluster}: {error}") from None
    sources, net = [Path(vq), Path(gpt), Path(idx_to_cluster)], None
    if refiner is not None:
        net = _build(refiner, refiner_from_dcpe, grid_size=grid_size, num_attention_heads=heads)
        sources.append(Path(refiner))
    pipeline = CodecladePipeline(
        vq_model,
        transformer,
        cluster_map,
        id2label=_labels(transformer.config.num_classes),
        guidance_scale=DCPE_GUIDANCE.get(transformer.config.hidden_size, OTHER_GUIDANCE),
        refiner=net,
    )
    return Conversion(pipeline, "DCPE", sources)


def convert_iar(
    vq: str | Path,
    gpt: str | Path,
    mapping: str | Path | None = None,
    image_size: int = 384,
    heads: int | None = None,
    cluster_size: int = 128,
) -> Conversion:
    """IAR's generator with the tokenizer whose codebook is in IAR's order, and IAR's clusters.

    Args:
        vq: the re-ordered tokenizer; or LlamaGen's own, with
        mapping: the published old-to-new permutation, applied to its rows here.
        gpt: an IAR generator (LlamaGen's layout).
        image_size, heads: as for `convert_llamagen`.
        cluster_size: ids in each block of the order.

    Raises:
        ValueError: files that are damaged, of another architecture, or do not fit together; a
            codebook that is not in IAR's order, or would be permuted twice.
    """
    vq_model = _iar_tokenizer(vq, mapping)
    transformer = _build(
        gpt,
        convert.transformer_from_llamagen,
        grid_size=_grid(image_size, vq_model),
        num_attention_heads=heads,
    )
    blocks = torch.arange(vq_model.codebook_size) // cluster_size
    pipeline = CodecladePipeline(
        vq_model,
        transformer,
        ClusterMap.from_labels(blocks, vq_model.codebook, method="iar"),
        id2label=_labels(transformer.config.num_classes),
        guidance_scale=IAR_GUIDANCE.get(transformer.config.hidden_size, OTHER_GUIDANCE),
    )
    sources = [Path(vq), Path(gpt)] + ([Path(mapping)] if mapping else [])
    return Conversion(pipeline, "IAR", sources)


def _iar_tokenizer(vq: str | Path, mapping: str | Path | None) -> VQModel:
    """A tokenizer in IAR's order: as it is in the file, or permuted by a mapping."""
    vq_model = _build(vq, convert.vq_model_from_llamagen)
    codebook = vq_model.codebook.detach()
    if mapping is not None:
        new_codebook = _permuted(codebook, convert.load_mapping(mapping), mapping)
        if _coherence(codebook) >= IAR_COHERENCE:
            raise ValueError(f"{vq} is in IAR's order already; leave --mapping out.")
        vq_model.quantize.embedding.weight = torch.nn.Parameter(new_codebook)
    if _coherence(vq_model.codebook.detach()) < IAR_COHERENCE:
        which = f"permuted by {mapping}" if mapping else "as it is"
        raise ValueError(
            f"the codebook of {vq}, {which}, is not in IAR's order; give the re-ordered tokenizer, "
            "or LlamaGen's with --mapping."
        )
    return vq_model


def _coherence(codebook: Tensor) -> float:
    """Mean cosine of neighbouring rows (N, d): near 1 in IAR's nearest-neighbour order."""
    unit = torch.nn.functional.normalize(codebook.float(), dim=-1)
    return (unit[1:] * unit[:-1]).sum(-1).mean().item()


def _permuted(codebook: Tensor, mapping: Tensor, path: str | Path) -> Tensor:
    """Row `mapping[i]` of the result is row i of `codebook`."""
    if not torch.equal(mapping.sort().values, torch.arange(len(codebook))):
        raise ValueError(f"{path} is no permutation of the {len(codebook)} codes of the tokenizer.")
    permuted = torch.empty_like(codebook)
    permuted[mapping] = codebook
    return permuted


def convert_iar2(
    vq: str | Path, gpt: str | Path, image_size: int = 384, heads: int | None = None
) -> Conversion:
    """IAR2's two-codebook tokenizer and generator as a pipeline.

    Raises:
        ValueError: files that are damaged, of another architecture, or do not fit together.
    """
    vq_model = _build(vq, convert.vq_model_from_iar2)
    transformer = _build(
        gpt,
        convert.transformer_from_iar2,
        grid_size=_grid(image_size, vq_model),
        num_attention_heads=heads,
    )
    pipeline = CodecladePipeline(
        vq_model,
        transformer,
        id2label=_labels(transformer.config.num_classes),
        **IAR2_SAMPLING,
    )
    return Conversion(pipeline, "IAR2", [Path(vq), Path(gpt)])


def save_repository(conversion: Conversion, folder: Path) -> None:
    """Write a loadable pipeline and where it comes from into an existing folder."""
    conversion.pipeline.save_pretrained(folder)
    text = bool(conversion.pipeline.transformer.config.text_dim)
    _save_provenance(folder, provenance(conversion.method, conversion.sources, text))


def write(out: str | Path, overwrite: bool, kind: str, files: dict[str, Any]) -> None:
    """Convert published files into the new folder `out`; nothing is left there if that fails.

    Args:
        kind: llamagen, dcpe, iar or iar2.
        files: arguments of `convert_...`; without a generator ("gpt": None) the folder becomes a
            VQModel's instead of a pipeline's.

    Raises:
        ValueError: files or a folder that cannot be taken.
    """
    with new_folder(out, overwrite) as folder:
        if files["gpt"] is None:
            _tokenizer(kind, files).save_pretrained(folder)
            method = {"iar": "IAR", "iar2": "IAR2"}.get(kind, "LlamaGen")
            _save_provenance(folder, provenance(method, [files["vq"]]))
            return
        for name, flag in (("idx_to_cluster", "--idx-to-cluster"), ("image_size", "--image-size")):
            if name in files and files[name] is None:
                raise ValueError(f"give {flag}, which the generator's file does not hold.")
        converters = {
            "llamagen": convert_llamagen,
            "dcpe": convert_dcpe,
            "iar": convert_iar,
            "iar2": convert_iar2,
        }
        save_repository(converters[kind](**files), folder)


def _tokenizer(kind: str, files: dict[str, Any]) -> VQModel:
    if kind == "iar":
        return _iar_tokenizer(files["vq"], files["mapping"])
    build = convert.vq_model_from_iar2 if kind == "iar2" else convert.vq_model_from_llamagen
    return _build(files["vq"], build)


LICENCES = {
    "LlamaGen": ("mit", "LlamaGen's code and weights are published under the MIT licence."),
    "DCPE": ("mit", "DCPE's code is published under the MIT licence."),
    "IAR": (None, "The IAR project names no licence: all rights are its authors'."),
    "IAR2": (None, "The IAR2 project names no licence: all rights are its authors'."),
}
PAPERS = {
    "LlamaGen": "arXiv 2406.06525",
    "DCPE": "arXiv 2508.10719",
    "IAR": "with LlamaGen, arXiv 2406.06525",
    "IAR2": "with LlamaGen, arXiv 2406.06525",
}


def provenance(method: str, sources: list[str | Path], text: bool = False) -> dict[str, Any]:
    """What is known of converted weights: their origin, licence and files (provenance.json)."""
    licence, sentence = LICENCES[method]
    data = "the authors' image-text pairs" if text else "ImageNet-1k"
    return {
        "method": method,
        "license": licence,
        "statement": f"Converted from {method}'s published files ({PAPERS[method]}); the weights "
        f"are unchanged. {sentence} Trained on {data}; its terms apply.",
        "datasets": [] if text else ["ILSVRC/imagenet-1k"],
        "files": [{"name": Path(p).name, "bytes": Path(p).stat().st_size} for p in sources],
    }


def _save_provenance(folder: Path, found: dict[str, Any]) -> None:
    (folder / "provenance.json").write_text(json.dumps(found, indent=2) + "\n")


def to_published(source: str | Path, folder: Path, pickled: bool = False) -> list[str]:
    """Write a pipeline's parts under the published key names.

    Args:
        source: pipeline folder.
        folder: gets vq, gpt and, where there are any, idx_to_cluster and refiner.
        pickled: torch's .pt files ({"model": ...}, as published) instead of .safetensors.

    Returns:
        The names of the files.

    Raises:
        ValueError: a folder that holds no pipeline.
    """
    source = Path(source)
    if not (source / "model_index.json").is_file():
        raise ValueError(f"{source} is no pipeline folder: it has no model_index.json.")
    pipeline = _load_any(source)
    paired = pipeline.transformer.scheme.detail_codes
    to_vq = convert.vq_model_to_iar2 if paired else convert.vq_model_to_llamagen
    to_gpt = convert.transformer_to_iar2 if paired else convert.transformer_to_llamagen
    parts = {"vq": to_vq(pipeline.vq_model), "gpt": to_gpt(pipeline.transformer)}
    if pipeline.cluster_map is not None:
        parts["idx_to_cluster"] = {"idx_to_cluster": pipeline.cluster_map.mapping}
    if pipeline.refiner is not None:
        parts["refiner"] = refiner_to_dcpe(pipeline.refiner)
    return [_save(folder / name, weights, pickled) for name, weights in parts.items()]


def _load_any(source: Path) -> CodecladePipeline:
    name = json.loads((source / "model_index.json").read_text())["_class_name"]
    if (name if isinstance(name, str) else name[-1]) == "CodecladeTextPipeline":
        from ..components.text_pipeline import CodecladeTextPipeline

        return CodecladeTextPipeline.from_pretrained(source)
    return CodecladePipeline.from_pretrained(source)


def _save(stem: Path, weights: dict[str, Tensor], pickled: bool) -> str:
    weights = {key: value.detach().contiguous() for key, value in weights.items()}
    if not pickled:
        save_file(weights, stem.with_suffix(".safetensors"))
        return f"{stem.name}.safetensors"
    bare = stem.name == "idx_to_cluster"
    torch.save(weights[stem.name] if bare else {"model": weights}, stem.with_suffix(".pt"))
    return f"{stem.name}.pt"
