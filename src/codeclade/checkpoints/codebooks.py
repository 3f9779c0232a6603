"""Where codebooks come from: array files, published checkpoints, model folders, Hub repositories.

Only the codebook is read, never the model: of a sharded multimodal repository (Janus, Emu3,
Chameleon, GLM-Image) the index and the one shard that holds it. Every VQ model of diffusers,
transformers, LlamaGen, IAR and taming keeps it under `quantize.embedding.weight`.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..components.vq_model import VQModel
from .llamagen import load_checkpoint, vq_model_from_iar2, vq_model_from_llamagen

Fetch = Callable[[str], Path]
TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]  # of httpx, or the fork this huggingface_hub uses

TABLES = {
    "semantic": ("quantize.embedding.weight",),
    "detail": ("quantize.embedding_second", "quantize.detail"),  # IAR2's file, our VQModel
}
FOLDERS = ("", "vq_model/", "vqvae/", "vqmodel/", "movq/")  # the model itself, or in a pipeline
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+?))?/?")
KINDS = (
    "a .npy or .safetensors file, a published .pt checkpoint, a model or pipeline folder, "
    "or a Hub id (owner/name, or owner/name/file-or-folder)"
)


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
    found = _resolve(str(source))
    file = found if isinstance(found, Path) else _weight_file(*found, table, str(source))
    codebook = _read(file, table, str(source))
    return codebook.float() if codebook.dtype in (torch.float16, torch.bfloat16) else codebook


def load_tokenizer(source: str | Path) -> VQModel:
    """The tokenizer of a VQModel or pipeline folder, Hub id or .pt, to encode and decode.

    Raises:
        ValueError: a source that is no such tokenizer.
    """
    found = _resolve(str(source))
    if isinstance(found, Path):
        if found.suffix in PICKLES:
            weights = load_checkpoint(found)
            iar2 = "quantize.embedding_second" in weights
            return vq_model_from_iar2(weights) if iar2 else vq_model_from_llamagen(weights)
        found = [], None
    names, fetch = found
    for folder in ("", "vq_model/"):
        if f"{folder}config.json" in names:
            config = fetch(f"{folder}config.json")
            settings = json.loads(config.read_text())
            if settings.get("_class_name") == "VQModel" and "codebook_size" in settings:
                _weight_file(names, fetch, "semantic", str(source))
                return VQModel.from_pretrained(config.parent).eval()
    raise ValueError(
        f"{source} holds no codeclade tokenizer to decode with: give a VQModel folder, a pipeline "
        "folder, the Hub id of one, or a tokenizer .pt of LlamaGen or IAR2."
    )


def _resolve(source: str) -> Path | tuple[list[str], Fetch]:
    """A file, or for a folder or repository the names in it and what makes a name a local path."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return _names(path), path.joinpath
    match = HUB_ID.fullmatch(source)
    if not match:
        raise ValueError(f"there is no {source}; a codebook source is {KINDS}.")
    repo, inner = match.groups()
    names, fetch = _hub(repo, source)
    if inner in names:
        return fetch(inner)
    prefix = f"{inner}/" if inner else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not below:
        raise ValueError(f"the Hub repository {repo} has no file or folder {inner}.")
    return below, lambda name: fetch(prefix + name)


def _names(root: Path) -> list[str]:
    """Files of a folder where weights may be; a search of everything below could take long."""
    return [
        folder + path.name
        for folder in FOLDERS
        for path in sorted((root / folder).glob("*"))
        if path.is_file()
    ]


def _hub(repo: str, source: str) -> tuple[list[str], Fetch]:
    """File names of a Hub repository and the download of one; offline, of what is cached."""
    api = HfApi()
    try:
        names = [file.rfilename for file in api.model_info(repo, timeout=10).siblings]
        return names, lambda name: Path(api.hf_hub_download(repo, name))
    except (TRANSPORT_ERROR, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
    try:
        cached = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{source} is neither a file or folder here nor a repository that can be read on the "
            f"Hub ({reason})."
        ) from None
    files = [file for file in cached.rglob("*") if file.is_file()]
    return [file.relative_to(cached).as_posix() for file in files], cached.joinpath


def _weight_file(names: list[str], fetch: Fetch, table: str | None, source: str) -> Path:
    """The file among `names` that holds the codebook; `fetch` makes it a local path.

    Safetensors go before pickles and plain names before variants (`model.fp16.safetensors`).
    """
    for folder in FOLDERS:
        here = [name for name in names if name.rpartition("/")[0] == folder.rstrip("/")]
        here.sort(key=lambda name: (".safetensors" not in name, len(name)))
        for name in here:
            if name.endswith(".index.json"):
                weight_map = json.loads(fetch(name).read_text())["weight_map"]
                return fetch(folder + weight_map[_pick(weight_map, table, source)])
        tensors = [name for name in here if name.endswith(".safetensors")]
        pickles = [name for name in here if name.endswith(PICKLES)]
        if tensors or len(pickles) == 1:
            return fetch((tensors or pickles)[0])
        if pickles:
            raise ValueError(
                f"{source} holds several checkpoints; name one of {', '.join(sorted(pickles))} "
                f"as {source}/{sorted(pickles)[0]}."
            )
    raise ValueError(f"{source} holds no model weights; a codebook source is {KINDS}.")


def _read(file: Path, table: str | None, source: str) -> Tensor:
    """The codebook tensor of one file."""
    if file.suffix == ".npy":
        if table:
            raise ValueError(f"{source} holds one array, so there is no --table {table} to choose.")
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False))
        except (ValueError, EOFError, TypeError) as error:
            raise ValueError(f"{source} is no readable array file ({error}).") from None
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as weights:
                slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
                flat = [
                    name
                    for name, part in slices.items()
                    if len(part.get_shape()) == 2 and "F" in part.get_dtype()
                ]
                return weights.get_tensor(_pick(slices, table, source, flat))
        except SafetensorError as error:
            raise ValueError(f"{source} is truncated or damaged ({error}).") from None
    if file.suffix in PICKLES:
        weights = load_checkpoint(file)
        flat = [n for n, value in weights.items() if value.ndim == 2 and value.is_floating_point()]
        return weights[_pick(weights, table, source, flat)]
    raise ValueError(f"{source} has the unknown ending {file.suffix!r}; give {KINDS}.")


def _pick(
    names: Iterable[str], table: str | None, source: str, matrices: list[str] | None = None
) -> str:
    """Name of the codebook among tensor `names`; without a known name, the only matrix there is."""
    names = list(names)
    wanted = TABLES.get(table, (table,)) if table else sum(TABLES.values(), ())
    found = [n for n in names if n in wanted or n.endswith(tuple(f".{w}" for w in wanted))]
    if not found and not table and matrices is not None and len(matrices) == 1:
        return matrices[0]
    if not found:
        what = f"tensor {wanted[0]}" if table else f"codebook (no tensor {wanted[0]})"
        examples = ", ".join((matrices or names)[:4]) or "nothing"
        raise ValueError(f"{source} holds no {what}; choose by --table among {examples}, ...")
    if len(found) > 1:
        raise ValueError(
            f"{source} holds {len(found)} codebooks ({', '.join(found)}); choose one with --table "
            f"({', '.join(TABLES)} or a tensor name)."
        )
    return found[0]
