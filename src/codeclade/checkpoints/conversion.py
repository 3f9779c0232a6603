"""Published checkpoint files to folders that `from_pretrained` loads, and back.

Which project's files they are is `registry.py`'s business and its families'.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..components.pipeline import CodecladePipeline
from ..components.text_pipeline import CodecladeTextPipeline
from ..components.weight_files import read_json
from ..data.atomic import new_folder, write_json
from ..data.records import Provenance
from .adapter import StateDictAdapter
from .containers import StateDict
from .family import Conversion, PublishedFamily
from .registry import FAMILIES, load_family


def write_folder(
    out: str | Path, family_name: str, vq: str | Path, gpt: str | Path | None, *,
    overwrite: bool = False, **given: Any,
) -> None:  # fmt: skip
    """Convert published files into the new folder `out`; nothing is left there if that fails.

    Args:
        out: its parent must exist.
        family_name: one of `registry.FAMILIES`.
        vq: tokenizer.
        gpt: generator; None: the folder becomes a VQModel's instead of a pipeline's.
        overwrite: replace a folder there.
        given: further arguments of `PublishedFamily.convert`.

    Raises:
        ValueError: files or a folder that cannot be taken.
    """
    # All in a temporary folder: whatever fails, from a damaged file to a full disk, leaves `out` as
    # it was.
    family = load_family(family_name)
    with new_folder(out, overwrite) as folder:
        if gpt is not None:
            save_conversion(family.convert(vq, gpt, **given), folder)
            return
        # A tokenizer alone may still need files of its family, as IAR's permutation; they are
        # sources, too, and stand in the record of where the weights come from.
        files = {name: given.get(name) for name in own_files(family_name)}
        family.build_tokenizer(vq, **files).save_pretrained(folder)
        sources = [vq, *(path for path in files.values() if path is not None)]
        _save_provenance(family.provenance(sources), folder)


def own_files(family_name: str) -> list[str]:
    """Names of the files that only this family has, as arguments of `PublishedFamily.convert`."""
    return [flag.replace("-", "_") for flag in FAMILIES[family_name].files]


def save_conversion(conversion: Conversion, folder: Path) -> None:
    """Write a loadable pipeline and where it comes from into an existing folder."""
    conversion.pipeline.save_pretrained(folder)
    _save_provenance(conversion.provenance, folder)


def _save_provenance(provenance: Provenance, folder: Path) -> None:
    write_json(folder / Provenance.FILE, provenance.to_json(), indent=2)


def write_published(source: str | Path, folder: Path, pickled: bool = False) -> list[str]:
    """Write a pipeline's parts under the key names of the family that has parts like them.

    Args:
        source: pipeline folder.
        folder: gets vq, gpt and, where there are any, idx_to_cluster and refiner.
        pickled: torch's .pt files ({"model": ...}, as published) instead of .safetensors.

    Returns:
        The names of the files.

    Raises:
        ValueError: a folder that holds no pipeline, or parts that no published family has.
    """
    # Loaded through the pipeline, whose own checks make sure that the parts fit together.
    source = Path(source)
    if not (source / "model_index.json").is_file():
        raise ValueError(f"{source} is no pipeline folder: it has no model_index.json.")
    pipeline = _load_pipeline(source)
    # All parts get their published names before the first file is written.
    parts = {
        "vq": published_weights(pipeline.vq_model, lambda family: family.tokenizer),
        "gpt": published_weights(pipeline.transformer, lambda family: family.generator),
    }
    # Text pipelines have neither of these parts, others may lack them.
    if getattr(pipeline, "cluster_map", None) is not None:
        parts["idx_to_cluster"] = {"idx_to_cluster": pipeline.cluster_map.mapping}
    if getattr(pipeline, "refiner", None) is not None:
        parts["refiner"] = published_weights(pipeline.refiner, lambda family: family.refiner)
    return [_save(folder / name, weights, pickled) for name, weights in parts.items()]


def published_weights(
    model: nn.Module, choose: Callable[[PublishedFamily], StateDictAdapter | None]
) -> StateDict:
    """A component's weights under the names of the first family that can hold them.

    Args:
        model: the component.
        choose: the adapter for this kind of component of a family; None where it has none.

    Raises:
        ValueError: no family can, and why the last one cannot.
    """
    # Families share layouts, so the first that can hold the model names it: LlamaGen before IAR,
    # whose files cannot be told apart by their names.
    reason = ""
    for adapter in adapters(choose):
        try:
            return adapter.published_weights(model)
        except ValueError as error:
            reason = str(error)
    raise ValueError(f"no published family holds this {type(model).__name__}: {reason}")


def adapters(
    choose: Callable[[PublishedFamily], StateDictAdapter | None],
) -> Iterator[StateDictAdapter]:
    """One kind of adapter of every family that has it, in the registry's order."""
    for name in FAMILIES:
        adapter = choose(load_family(name))
        if adapter is not None:
            yield adapter


def _load_pipeline(source: Path) -> CodecladePipeline | CodecladeTextPipeline:
    name = read_json(source / "model_index.json").get("_class_name")
    text = "CodecladeTextPipeline" in (name if isinstance(name, list) else [name])
    return (CodecladeTextPipeline if text else CodecladePipeline).from_pretrained(source)


def _save(stem: Path, weights: dict[str, Tensor], pickled: bool) -> str:
    # Files of safetensors take no views; 1x1 convolutions made of linear layers are some.
    weights = {key: value.detach().contiguous() for key, value in weights.items()}
    if not pickled:
        save_file(weights, stem.with_suffix(".safetensors"))
        return f"{stem.name}.safetensors"
    bare = stem.name == "idx_to_cluster"
    torch.save(weights[stem.name] if bare else {"model": weights}, stem.with_suffix(".pt"))
    return f"{stem.name}.pt"
