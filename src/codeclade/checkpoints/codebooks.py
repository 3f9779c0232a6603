"""Codebooks of any library: array files, published checkpoints, model folders, Hub repositories.

For a codebook only that is read, never the model: of a sharded multimodal repository (Janus, Emu3,
Chameleon, GLM-Image) the index and the one shard that holds it. Every VQ model of diffusers,
transformers, LlamaGen, IAR and taming keeps it under `quantize.embedding.weight`.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..components.vq_model import VQModel
from ..components.weight_files import read_header, read_json, shortened
from .adapter import listed
from .containers import damaged, load_checkpoint
from .conversion import adapters
from .library_tokenizers import (
    LibraryTokenizer,
    diffusers_tokenizer,
    transformers_kind,
    transformers_tokenizer,
)
from .llamagen import FAMILY as LLAMAGEN
from .sources import FOLDERS, KINDS, Files, find_source

TABLES = {
    "semantic": ("quantize.embedding.weight",),
    "detail": ("quantize.embedding_second", "quantize.detail"),  # IAR2's file, our VQModel
}
BESIDE = "discriminator.safetensors"  # what a training run keeps beside its tokenizer
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def load_codebook(source: str | Path, table: str | None = None) -> Tensor:
    """The stored codebook (N, d) of a source, float32 (float64 where the file has it).

    Args:
        source: a .npy or .safetensors file; a .pt of LlamaGen, IAR or IAR2; the folder or Hub id of
            a VQ model (ours, diffusers' `VQModel`, taming), of a pipeline that holds one, or of a
            Janus, Emu3, Chameleon or GLM-Image model. `owner/name/path` names a file or folder of
            a Hub repository.
        table: which one, where a source has several: "semantic" or "detail" (IAR2), or the name of
            any tensor.

    Raises:
        ValueError: a source that is none of these, or holds no codebook or several.
    """
    source = str(source)
    found = find_source(source)
    file = found if isinstance(found, Path) else _weight_file(found, table, source)
    codebook = _read(file, table, source)
    return codebook.float() if codebook.dtype in (torch.float16, torch.bfloat16) else codebook


def load_tokenizer(source: str | Path) -> VQModel | LibraryTokenizer:
    """The tokenizer of a source, to encode and decode.

    Args:
        source: folder or Hub id of a VQModel of ours or of diffusers, of a pipeline that holds one,
            or of a Janus or Emu3 model; or a tokenizer .pt of LlamaGen, IAR or IAR2.

    Raises:
        ValueError: a source that is no such tokenizer, or one without a decoder.
    """
    source = str(source)
    found = find_source(source)
    if isinstance(found, Path) and found.suffix in PICKLES:
        # The first family that knows every name in the file; LlamaGen's says what is wrong else.
        weights = load_checkpoint(found)
        known = (one for one in adapters(lambda f: f.tokenizer) if one.recognizes(weights))
        return next(known, LLAMAGEN.tokenizer).build(weights)
    # Whose it is a config says: diffusers' VQModel has the class name of ours and other fields.
    files = Files([], Path) if isinstance(found, Path) else found
    for folder in FOLDERS:
        if f"{folder}config.json" not in files.names:
            continue
        config = files.fetch(f"{folder}config.json")
        settings = read_json(config)
        if settings.get("_class_name") == "VQModel" and "codebook_size" in settings:
            _weight_file(files, "semantic", source)
            return VQModel.from_pretrained(config.parent).eval()
        if settings.get("_class_name") == "VQModel" and "num_vq_embeddings" in settings:
            return diffusers_tokenizer(
                config.parent, _weight_file(files, "semantic", source), source
            )
        kind = transformers_kind(settings)
        if kind and not folder:
            return transformers_tokenizer(kind, settings, _inner_weights(files, source), source)
    raise ValueError(
        f"{shortened(source)} holds no tokenizer to decode with: give the folder or Hub id of a VQ "
        "model (codeclade, diffusers, Janus, Emu3) or of a pipeline that holds one, or a tokenizer "
        ".pt of LlamaGen or IAR2."
    )


def _inner_weights(files: Files, source: str) -> dict[str, Tensor]:
    """Weights of the VQ model in a larger model, by their names in it; no others are read."""
    file = _weight_file(files, "semantic", source)
    names = set(read_header(file) if file.suffix == ".safetensors" else load_checkpoint(file))
    # What stands before the table's name is where the tokenizer lies in the checkpoint.
    key = TABLES["semantic"][0]
    prefix = _pick(names, "semantic", source).removesuffix(key)

    # All shards that hold a part of it, by the index where there is one.
    shards = {file}
    for index in (name for name in files.names if name.endswith(".index.json")):
        weight_map = read_json(files.fetch(index)).get("weight_map", {})
        inside = {str(shard) for name, shard in weight_map.items() if name.startswith(prefix)}
        shards |= {files.fetch(shard) for shard in inside & set(files.names)}

    # Of a shard only what belongs to the tokenizer is read, where the format allows it.
    weights = {}
    for shard in sorted(shards):
        if shard.suffix == ".safetensors":
            with safe_open(shard, "pt") as stored:
                own = [name for name in read_header(shard) if name.startswith(prefix)]
                weights |= {name: stored.get_tensor(name) for name in own}
        else:
            weights |= load_checkpoint(shard)
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _weight_file(files: Files, table: str | None, source: str) -> Path:
    """The file that holds the codebook.

    Safetensors go before pickles and plain names before variants (`model.fp16.safetensors`).
    """
    for folder in FOLDERS:
        here = [name for name in files.names if name.rpartition("/")[0] == folder.rstrip("/")]
        here = [name for name in here if name != BESIDE]
        here.sort(key=lambda name: (".safetensors" not in name, len(name)))
        # An index goes first: beside it lie shards, of which any but one lacks the codebook.
        for name in here:
            if name.endswith(".index.json"):
                return files.fetch(folder + _shard(files, name, table, source))
        tensors = [name for name in here if name.endswith(".safetensors")]
        pickles = [name for name in here if name.endswith(PICKLES)]
        if tensors or len(pickles) == 1:
            return files.fetch((tensors or pickles)[0])
        if pickles:
            raise ValueError(
                f"{source} holds several checkpoints; name one of {listed(sorted(pickles))} "
                f"as {source}/{sorted(pickles)[0]}."
            )
    raise ValueError(f"{source} holds no model weights; a codebook source is {KINDS}.")


def _shard(files: Files, index: str, table: str | None, source: str) -> str:
    """Name of the shard that holds the codebook, by an index of shards beside it."""
    weight_map = read_json(files.fetch(index)).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{source}: {index} has no weight_map.")
    # The index is a file like any other: the name in it must be one that is there, or it could lead
    # out of the folder.
    shard = weight_map[_pick(weight_map, table, source)]
    folder = index[: -len(index.rpartition("/")[2])]
    if not isinstance(shard, str) or folder + shard not in files.names:
        raise ValueError(f"{source}: {index} names {shortened(shard)}, which is not beside it.")
    return shard


def _read(file: Path, table: str | None, source: str) -> Tensor:
    """The codebook tensor of one file."""
    if file.suffix == ".npy":
        if table:
            raise ValueError(f"{source} holds one array, so there is no --table {table} to choose.")
        return torch.from_numpy(_read_array(file, source))
    if file.suffix == ".safetensors":
        try:
            stored = read_header(file)
        except OSError as error:
            raise damaged(file, error) from None
        # The header tells shapes and types, so that one tensor is read of a model of any size.
        flat = [
            name
            for name, one in stored.items()
            if len(one.shape) == 2 and one.dtype in ("F64", "F32", "F16", "BF16")
        ]
        with safe_open(file, "pt") as weights:
            return _as_rows(weights.get_tensor(_pick(stored, table, source, flat)), source)
    # A pickle is read whole, by torch's reader of weights alone.
    if file.suffix in PICKLES:
        weights = load_checkpoint(file)
        flat = [n for n, value in weights.items() if value.ndim == 2 and value.is_floating_point()]
        return _as_rows(weights[_pick(weights, table, source, flat)], source)
    raise ValueError(f"{source} has the unknown ending {file.suffix!r}; give {KINDS}.")


def _read_array(file: Path, source: str) -> np.ndarray:
    """The array of a .npy file, which is mapped first: its header may claim more than it holds."""
    try:
        mapped = np.load(file, allow_pickle=False, mmap_mode="r")
        if not isinstance(mapped, np.ndarray):
            raise ValueError("an archive of arrays")
        # Copied in this machine's byte order, which torch demands; what is mapped and shorter than
        # its header says has failed by now, before any memory was taken.
        native = np.array(mapped, dtype=mapped.dtype.newbyteorder("="), order="C")
        torch.from_numpy(native[:0])  # of a type that torch has
        return native
    except Exception as error:  # whatever NumPy says of a damaged file
        reason = shortened(str(error) or type(error).__name__, 100)
        raise ValueError(f"{source} is no readable array file ({reason}).") from None


def _as_rows(found: Tensor, source: str) -> Tensor:
    """The tensor that was chosen, if it can be a codebook."""
    if found.ndim != 2 or not found.is_floating_point():
        dtype = str(found.dtype).removeprefix("torch.")
        raise ValueError(
            f"{source}: a codebook has two dimensions of floating-point numbers, this one is "
            f"{dtype} of shape {tuple(found.shape)}."
        )
    return found


def _pick(
    names: Iterable[str], table: str | None, source: str, matrices: list[str] | None = None
) -> str:
    """Name of the codebook among tensor `names`; without a known name, the only matrix there is."""
    # Known names first, at any depth, since models keep their tokenizer under a prefix; only a file
    # with no known name and one matrix in it leaves nothing to choose.
    names = list(names)
    wanted = TABLES.get(table, (table,)) if table else sum(TABLES.values(), ())
    found = [n for n in names if n in wanted or n.endswith(tuple(f".{w}" for w in wanted))]
    if not found and not table and matrices is not None and len(matrices) == 1:
        return matrices[0]
    if not found:
        what = f"tensor {wanted[0]}" if table else f"codebook (no tensor {wanted[0]})"
        examples = ", ".join(shortened(n, 40) for n in (matrices or names)[:4]) or "nothing"
        raise ValueError(f"{source} holds no {what}; choose by --table among {examples}, ...")
    if len(found) > 1:
        raise ValueError(
            f"{source} holds {len(found)} codebooks ({listed(found)}); choose one with --table "
            f"({', '.join(TABLES)} or a tensor name)."
        )
    return found[0]
