"""LlamaGen's published checkpoints (arXiv 2406.06525): tokenizers and generators.

Tokenizers vq_ds16_c2i.pt, vq_ds8_c2i.pt and vq_ds16_t2i.pt, generators c2i_*.pt and t2i_*.pt; the
converted models are numerically equal to them. Other families keep to this layout: IAR as it is,
DCPE and IAR2 with changes of their own.
"""

import re
from abc import abstractmethod
from typing import Any

from torch import nn

from ..components.transformer import CodecladeConfig, CodecladeTransformer
from ..components.vq_model import VQModel
from .adapter import StateDictAdapter, count_layers, shape_of
from .containers import StateDict
from .family import PublishedFamily

# Stems, `{}` is a number; `.weight` and `.bias` follow.
GENERATOR_NAMES = {
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
    # In the middle they are numbered: a residual block, an attention block, a residual block.
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


TOKENIZER_NAMES = {
    **_tower_names("encoder", "down_blocks", "downsample"),
    **_tower_names("decoder", "up_blocks", "upsample"),
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "quantize.embedding": "quantize.embedding",
}
POINTWISE = re.compile(r".*\.(attn\.[0-9]+|mid\.1)\.(q|k|v|proj_out)\.weight")

# Heads follow from the width in all published sizes.
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}

# Guidance of the published evaluations by width: B 768, L 1024, XL 1280, XXL 1536, 3B 3200.
GUIDANCE = {768: 2.0, 1024: 2.0, 1280: 1.75, 1536: 1.75, 3200: 1.65}
TEXT_SAMPLING = {"guidance_scale": 7.5, "top_k": 1000}


class LlamaGenTokenizer(StateDictAdapter):
    """LlamaGen's VQ-8 or VQ-16 tokenizer, of any channel counts."""

    what = "LlamaGen tokenizer"
    names = TOKENIZER_NAMES
    required = (
        "quantize.embedding.weight",
        "quant_conv.weight",
        "encoder.conv_blocks.0.res.0.conv1.weight",
    )

    def config_from(self, state_dict: StateDict, **given: Any) -> dict[str, Any]:
        """Fields of a `VQModel`; nothing is given."""
        # One width a level, by its first convolution; the number of levels sets the downsampling.
        levels = count_layers(state_dict, r"encoder\.conv_blocks\.([0-9]+)\.")
        widths = [f"encoder.conv_blocks.{i}.res.0.conv1.weight" for i in range(levels)]
        self.check_names(widths, state_dict)
        size, dim = shape_of(state_dict, "quantize.embedding.weight", 2)
        return {
            "block_out_channels": tuple(shape_of(state_dict, key, 4)[0] for key in widths),
            "layers_per_block": count_layers(state_dict, r"encoder\.conv_blocks\.0\.res\.([0-9]+)"),
            "latent_channels": shape_of(state_dict, "quant_conv.weight", 4)[1],
            "codebook_size": size,
            "codebook_dim": dim,
        }

    def new_model(self, fields: dict[str, Any]) -> VQModel:
        return VQModel(**fields)

    def from_published(self, state_dict: StateDict) -> StateDict:
        """As in the parent class; a 1x1 convolution becomes a linear layer."""
        return super().from_published(
            {
                key: value.flatten(1) if POINTWISE.fullmatch(key) else value
                for key, value in state_dict.items()
            }
        )

    def to_published(self, state_dict: StateDict) -> StateDict:
        """As in the parent class; linear layers of attention become 1x1 convolutions."""
        return {
            key: value[:, :, None, None] if POINTWISE.fullmatch(key) else value
            for key, value in super().to_published(state_dict).items()
        }


class BlockAdapter(StateDictAdapter):
    """A network of LlamaGen's blocks, as every family here has; `end_fields` is its own part."""

    def config_from(
        self,
        state_dict: StateDict,
        *,
        grid_size: int,
        num_attention_heads: int | None = None,
    ) -> dict[str, Any]:
        """Fields of the network's configuration.

        Args:
            state_dict: published names.
            grid_size: token grid side (256 px: 16, 384 px: 24, 512 px: 32 for VQ-16).
            num_attention_heads: taken from the width where it is one of the published sizes.

        Raises:
            ValueError: heads that cannot be known, or shapes no such network has.
        """
        ends = self.end_fields(state_dict)
        blocks = block_fields(state_dict, ends["hidden_size"], num_attention_heads)
        return {"grid_size": grid_size, **ends, **blocks}

    @abstractmethod
    def end_fields(self, state_dict: StateDict) -> dict[str, Any]:
        """What the weights before and after the blocks say: `hidden_size`, tokens, condition."""

    def new_model(self, fields: dict[str, Any]) -> nn.Module:
        return CodecladeTransformer(CodecladeConfig(**fields))


class LlamaGenGenerator(BlockAdapter):
    """A LlamaGen generator, class- or text-conditional."""

    what = "LlamaGen generator"
    names = GENERATOR_NAMES
    required = ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight")

    def end_fields(self, state_dict: StateDict) -> dict[str, Any]:
        """Fields of a `CodecladeConfig`: scheme "token", classes or text."""
        # Which of the two kinds it is, their first names tell: captions pass a projection, classes
        # have a table.
        text = "cls_embedding.cap_proj.fc1.weight" in state_dict
        condition = f"cls_embedding.{'uncond_embedding' if text else 'embedding_table.weight'}"
        self.check_names([condition], state_dict)
        # The last class is the null class. With text, the null condition has a row for each token
        # of the prefix.
        vocab_size, width = shape_of(state_dict, "tok_embeddings.weight", 2)
        rows, features = shape_of(state_dict, condition, 2)
        return {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_classes": 0 if text else rows - 1,
            "text_dim": features if text else None,
            "prefix_length": rows if text else 1,
        }


def block_fields(state_dict: StateDict, width: int, heads: int | None) -> dict[str, int]:
    """Size and number of the blocks of a LlamaGen-like network.

    Raises:
        ValueError: heads that cannot be known, or do not divide the width.
    """
    if heads is None and width not in HEADS:
        raise ValueError(
            f"width {width} is no published size ({', '.join(map(str, HEADS))}); give "
            "num_attention_heads (--heads)."
        )
    # Rotary embeddings turn pairs of numbers, half of them by the row and half by the column, so
    # that a head's width is a multiple of 4.
    heads = HEADS[width] if heads is None else heads
    if heads < 1 or width % (4 * heads):
        raise ValueError(f"{heads} heads do not divide a width of {width} into multiples of 4.")
    return {
        "hidden_size": width,
        "num_hidden_layers": count_layers(state_dict, r"layers\.([0-9]+)\."),
        "num_attention_heads": heads,
        "intermediate_size": shape_of(state_dict, "layers.0.feed_forward.w1.weight", 2)[0],
    }


class LlamaGen(PublishedFamily):
    """Class- and text-conditional pipelines of LlamaGen."""

    method = "LlamaGen"
    paper = "arXiv 2406.06525"
    license = "mit"
    license_statement = "LlamaGen's code and weights are published under the MIT license."
    tokenizer = LlamaGenTokenizer()
    generator = LlamaGenGenerator()
    guidance = GUIDANCE

    def sampling(self, transformer: CodecladeTransformer) -> dict[str, Any]:
        return TEXT_SAMPLING if transformer.config.text_dim else super().sampling(transformer)


FAMILY = LlamaGen()
