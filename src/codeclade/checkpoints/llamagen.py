"""Published checkpoints to codeclade models and back, by literal name maps.

LlamaGen (arXiv 2406.06525): tokenizers vq_ds{16,8}_c2i.pt, generators c2i_*.pt, t2i_*.pt.
IAR: LlamaGen's layout on a permuted codebook, and the permutation's own file (`load_mapping`).
IAR2: tokenizer 0485000.pt, generators IAR2-*.
Strict in both directions: every missing or unexpected weight is named. Pickles are read with
`weights_only=True`, so nothing in a checkpoint is ever executed.
"""

import argparse
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel

StateDict = dict[str, Tensor]

CONTAINERS = ("ema", "model", "module", "state_dict")  # in this order of preference
PREFIXES = ("_orig_mod.", "module.")
IGNORED = re.compile(
    r"(freqs_cis|causal_mask|.*\.kv_cache\.[kv]_cache|quantize\.codebook_used\d*)$"
)

# Stems, `{}` is a number; `.weight` and `.bias` follow.
GPT_NAMES = {
    "cls_embedding.embedding_table": "prefix.embedding",
    "cls_embedding.cap_proj.fc1": "prefix.fc1",
    "cls_embedding.cap_proj.fc2": "prefix.fc2",
    "cls_embedding.uncond_embedding": "prefix.null",
    "tok_embeddings": "token_embedding",
    "layers.{}.attention_norm": "layers.{}.attention_norm",
    "layers.{}.attention.wqkv": "layers.{}.attention.qkv",
    "layers.{}.attention.wo": "layers.{}.attention.out",
    "layers.{}.ffn_norm": "layers.{}.feed_forward_norm",
    "layers.{}.feed_forward.w1": "layers.{}.feed_forward.gate",
    "layers.{}.feed_forward.w3": "layers.{}.feed_forward.up",
    "layers.{}.feed_forward.w2": "layers.{}.feed_forward.down",
    "norm": "norm",
    "output": "head",
}

IAR2_NAMES = {
    **{
        theirs: ours
        for theirs, ours in GPT_NAMES.items()
        if theirs.startswith(("layers.", "cls_embedding.embedding_table"))
    },
    **{
        theirs.replace("layers", "factorized_blocks"): ours.replace("layers", "head.blocks")
        for theirs, ours in GPT_NAMES.items()
        if theirs.startswith("layers.")
    },
    "norm": "head.norm",
    "tok_embeddings1": "token_embedding.semantic",
    "tok_embeddings2": "token_embedding.detail",
    "aggregation_layer.{}": "token_embedding.mix.{}",
    "output1.{}": "head.semantic.{}",
    "output2.{}": "head.detail.{}",
    "mlp1.{}": "head.compress.{}",
    "mlp2.{}": "head.combine.{}",
}

_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
_RESIDUAL["nin_shortcut"] = "conv_shortcut"
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _tower_names(tower: str, blocks: str, resample: str) -> dict[str, str]:
    """Name map of the encoder or decoder, LlamaGen stem to diffusers stem."""
    names = {
        f"{tower}.conv_in": f"{tower}.conv_in",
        f"{tower}.norm_out": f"{tower}.conv_norm_out",
        f"{tower}.conv_out": f"{tower}.conv_out",
        f"{tower}.conv_blocks.{{}}.{resample}.conv": f"{tower}.{blocks}.{{}}.{resample}rs.0.conv",
    }
    for theirs, ours in _RESIDUAL.items():
        names[f"{tower}.conv_blocks.{{}}.res.{{}}.{theirs}"] = (
            f"{tower}.{blocks}.{{}}.resnets.{{}}.{ours}"
        )
        names[f"{tower}.mid.0.{theirs}"] = f"{tower}.mid_block.resnets.0.{ours}"
        names[f"{tower}.mid.2.{theirs}"] = f"{tower}.mid_block.resnets.1.{ours}"
    for theirs, ours in _ATTENTION.items():
        names[f"{tower}.conv_blocks.{{}}.attn.{{}}.{theirs}"] = (
            f"{tower}.{blocks}.{{}}.attentions.{{}}.{ours}"
        )
        names[f"{tower}.mid.1.{theirs}"] = f"{tower}.mid_block.attentions.0.{ours}"
    return names


VQ_NAMES = {
    **_tower_names("encoder", "down_blocks", "downsample"),
    **_tower_names("decoder", "up_blocks", "upsample"),
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "quantize.embedding": "quantize.embedding",
}
IAR2_VQ_NAMES = {**VQ_NAMES, "quantize.embedding_second": "quantize.detail"}

# Heads follow from the width in all published sizes.
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}


def load_checkpoint(path: str | Path) -> StateDict:
    """The bare state dict of a published file (.safetensors, or a torch pickle of any container).

    Unwraps training containers, strips wrapper prefixes, drops caches and counters.

    Raises:
        ValueError: a file that is missing, damaged, holds anything but tensors, or no weights.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            content = inner
            break
    weights = {
        _plain_key(key): value for key, value in content.items() if isinstance(value, Tensor)
    }
    weights = {key: value for key, value in weights.items() if not IGNORED.match(key)}
    if not weights:
        raise ValueError(f"{path} holds no weights; its keys are {', '.join(map(str, content))}.")
    return weights


def load_mapping(path: str | Path) -> Tensor:
    """Integers (N,) of a published mapping file: IAR's old id to new id, DCPE's id to cluster.

    Such a file is one bare tensor, which may be a view into a larger storage.

    Raises:
        ValueError: a file that is missing, damaged, or holds anything but one row of integers >= 0.
    """
    content = _read(path)
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor) or content.ndim != 1 or content.is_floating_point():
        what = tuple(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise ValueError(f"{path} holds {what}, not one row of integers.")
    if len(content) == 0 or content.min() < 0:
        raise ValueError(f"{path} holds no ids, or negative ones; a mapping has numbers from 0.")
    return content.to(torch.int64).clone()  # without the rest of a larger storage


def _read(path: str | Path):
    """Whatever a checkpoint file holds, as long as it is tensors and plain containers."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: a 12 GB file takes no memory of its own until it is written again.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, EOFError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({(str(error) or 'it is empty').splitlines()[0]})."
        ) from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds Python objects beside tensors; refused, since loading it could run code."
        ) from None


def _plain_key(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _rename(state_dict: StateDict, names: dict[str, str]) -> StateDict:
    """Keys renamed by a stem map; unknown keys are kept for the strict load to name."""
    patterns = [
        (re.compile(re.escape(source).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias)?"), target)
        for source, target in names.items()
    ]
    renamed = {}
    for key, value in state_dict.items():
        for pattern, target in patterns:
            match = pattern.fullmatch(key)
            if match:
                *numbers, leaf = match.groups()
                key = target.format(*numbers) + (leaf or "")
                break
        renamed[key] = value
    return renamed


def _reverse(names: dict[str, str]) -> dict[str, str]:
    return {target: source for source, target in names.items()}


def _load_strictly(model: nn.Module, weights: StateDict, what: str) -> None:
    """Give a model built on the meta device its weights, without copying them.

    Raises:
        ValueError: naming missing or unexpected keys, or a shape that differs.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in weights]
    unexpected = [key for key in weights if key not in wanted]
    if missing or unexpected:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unexpected {', '.join(unexpected)}"] if unexpected else []
        raise ValueError(f"this is no {what} checkpoint: {'; '.join(parts)}.")
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(value.shape)}, but this {what} needs "
                f"{tuple(wanted[key].shape)}."
            )
    model.load_state_dict(weights, assign=True)


def _require(state_dict: StateDict, keys: list[str], what: str) -> None:
    missing = [key for key in keys if key not in state_dict]
    if missing:
        raise ValueError(f"this is no {what} checkpoint: missing {', '.join(missing)}.")


def _count(state_dict: StateDict, pattern: str) -> int:
    """One more than the largest number at `(\\d+)` in any key that starts with `pattern`."""
    found = [match for match in (re.match(pattern, key) for key in state_dict) if match]
    return 1 + max((int(match.group(1)) for match in found), default=-1)


def vq_model_from_llamagen(state_dict: StateDict) -> VQModel:
    """LlamaGen's VQ-8 or VQ-16 tokenizer (any channel counts) as a `VQModel`, in eval mode.

    Raises:
        ValueError: weights missing, unexpected or of a wrong shape.
    """
    return _vq_model(state_dict, VQ_NAMES, "LlamaGen tokenizer")


def vq_model_to_llamagen(model: VQModel) -> StateDict:
    """Inverse of `vq_model_from_llamagen`: LlamaGen's key names and shapes."""
    return _vq_state_dict(model, VQ_NAMES)


def vq_model_from_iar2(state_dict: StateDict) -> VQModel:
    """IAR2's tokenizer as a `VQModel` in eval mode: two codebooks, or one after its first stage.

    Raises:
        ValueError: weights missing, unexpected or of a wrong shape.
    """
    return _vq_model(state_dict, IAR2_VQ_NAMES, "IAR2 tokenizer")


def vq_model_to_iar2(model: VQModel) -> StateDict:
    """Inverse of `vq_model_from_iar2`: IAR2's key names and shapes."""
    return _vq_state_dict(model, IAR2_VQ_NAMES)


def _vq_model(state_dict: StateDict, names: dict[str, str], what: str) -> VQModel:
    state_dict = {key: value for key, value in state_dict.items() if not IGNORED.match(key)}
    _require(state_dict, ["quantize.embedding.weight", "quant_conv.weight"], what)
    levels = _count(state_dict, r"encoder\.conv_blocks\.(\d+)\.")
    widths = [f"encoder.conv_blocks.{i}.res.0.conv1.weight" for i in range(levels)]
    _require(state_dict, widths or ["encoder.conv_blocks.0.res.0.conv1.weight"], what)
    size, dim = state_dict["quantize.embedding.weight"].shape
    weights = _rename(state_dict, names)
    detail = weights.get("quantize.detail")
    with torch.device("meta"):
        model = VQModel(
            block_out_channels=tuple(state_dict[key].shape[0] for key in widths),
            layers_per_block=_count(state_dict, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            latent_channels=state_dict["quant_conv.weight"].shape[1],
            codebook_size=size,
            codebook_dim=dim,
            detail_codebook_size=None if detail is None else len(detail),
        )
    for key, value in weights.items():
        if ".attentions." in key and value.ndim == 4:
            weights[key] = value.flatten(1)  # a 1x1 convolution is a linear layer
    _load_strictly(model, weights, what)
    return model.eval()


def _vq_state_dict(model: VQModel, names: dict[str, str]) -> StateDict:
    weights = _rename(model.state_dict(), _reverse(names))
    attention = re.compile(r".*\.(attn\.\d+|mid\.1)\.(q|k|v|proj_out)\.weight")
    return {
        key: value[:, :, None, None] if attention.fullmatch(key) else value
        for key, value in weights.items()
    }


def transformer_from_llamagen(
    state_dict: StateDict, *, grid_size: int, num_attention_heads: int | None = None
) -> CodecladeTransformer:
    """A LlamaGen generator, class- or text-conditional, as a `CodecladeTransformer` in eval mode.

    Args:
        state_dict: LlamaGen's key names, as `load_checkpoint` gives them.
        grid_size: token grid side (256 px: 16, 384 px: 24, 512 px: 32 for VQ-16); not in the file.
        num_attention_heads: taken from the width where it is one of the published sizes.

    Raises:
        ValueError: weights missing, unexpected or of a wrong shape, or heads that cannot be known.
    """
    what = "LlamaGen generator"
    state_dict = {key: value for key, value in state_dict.items() if not IGNORED.match(key)}
    text = "cls_embedding.cap_proj.fc1.weight" in state_dict
    condition = "uncond_embedding" if text else "embedding_table.weight"
    feed_forward = "layers.0.feed_forward.w1.weight"
    _require(
        state_dict, ["tok_embeddings.weight", feed_forward, f"cls_embedding.{condition}"], what
    )
    vocab_size, width = state_dict["tok_embeddings.weight"].shape
    rows = state_dict[f"cls_embedding.{condition}"]
    config = CodecladeConfig(
        vocab_size=vocab_size,
        grid_size=grid_size,
        num_classes=0 if text else rows.shape[0] - 1,
        text_dim=rows.shape[1] if text else None,
        prefix_length=rows.shape[0] if text else 1,
        hidden_size=width,
        num_hidden_layers=_count(state_dict, r"layers\.(\d+)\."),
        num_attention_heads=num_attention_heads or _published_heads(width),
        intermediate_size=state_dict[feed_forward].shape[0],
    )
    with torch.device("meta"):
        model = CodecladeTransformer(config)
    _load_strictly(model, _rename(state_dict, GPT_NAMES), what)
    return model.eval()


def _published_heads(width: int) -> int:
    if width not in HEADS:
        raise ValueError(
            f"width {width} is no published size ({', '.join(map(str, HEADS))}); "
            "give num_attention_heads (--heads)."
        )
    return HEADS[width]


def transformer_to_llamagen(model: CodecladeTransformer) -> StateDict:
    """Inverse of `transformer_from_llamagen`: LlamaGen's key names."""
    return _rename(model.state_dict(), _reverse(GPT_NAMES))


def transformer_from_iar2(
    state_dict: StateDict, *, grid_size: int, num_attention_heads: int | None = None
) -> CodecladeTransformer:
    """An IAR2 generator as a `CodecladeTransformer` of scheme "semantic_detail", in eval mode.

    Args:
        state_dict: IAR2's key names, as `load_checkpoint` gives them.
        grid_size: token grid side (24 for the published 384 px models); not in the file.
        num_attention_heads: taken from the width where it is one of the published sizes.

    Raises:
        ValueError: weights missing, unexpected or of a wrong shape, or heads that cannot be known.
    """
    what = "IAR2 generator"
    state_dict = {key: value for key, value in state_dict.items() if not IGNORED.match(key)}
    feed_forward, classes = (
        "layers.0.feed_forward.w1.weight",
        "cls_embedding.embedding_table.weight",
    )
    tables = ["tok_embeddings1.weight", "tok_embeddings2.weight"]
    _require(state_dict, [*tables, feed_forward, classes], what)
    width = state_dict[classes].shape[1]
    config = CodecladeConfig(
        vocab_size=len(state_dict[tables[1]]),
        scheme="semantic_detail",
        coarse_vocab_size=len(state_dict[tables[0]]),
        grid_size=grid_size,
        num_classes=len(state_dict[classes]) - 1,
        hidden_size=width,
        num_hidden_layers=_count(state_dict, r"layers\.(\d+)\."),
        num_attention_heads=num_attention_heads or _published_heads(width),
        intermediate_size=state_dict[feed_forward].shape[0],
        positions_per_cell=2,
        head_layers=_count(state_dict, r"factorized_blocks\.(\d+)\."),
    )
    with torch.device("meta"):
        model = CodecladeTransformer(config)
    _load_strictly(model, _rename(state_dict, IAR2_NAMES), what)
    return model.eval()


def transformer_to_iar2(model: CodecladeTransformer) -> StateDict:
    """Inverse of `transformer_from_iar2`: IAR2's key names."""
    return _rename(model.state_dict(), _reverse(IAR2_NAMES))
