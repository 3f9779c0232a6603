"""VQ models of diffusers and transformers as tokenizers: pixels to ids and back by their own code.

For the replacement test on other libraries' codebooks. The model is the library's own class, here
only called under the names that our VQModel has.

Shapes: B batch, H W image sides, G = H / downsample token grid side.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from ..components.vq_model import check_range
from ..components.weight_files import shortened
from .adapter import listed

UNSAID = 32  # diffusers' default sample_size, which its published models keep at any size
USUAL_SIDE = 256  # pixels, where a model does not say for which images it is
DECODERLESS = {"chameleon": "Chameleon", "glm_image": "GLM-Image"}  # encoders alone, by model_type


class Tokens(NamedTuple):
    """What `encode` returns."""

    ids: Tensor  # (B, G, G) int64


class LibraryTokenizer(nn.Module, ABC):
    """Another library's VQ model under the names of ours.

    Args:
        model: the library's model.
        downsample: pixels a side of one token.
        sample_size: pixels a side of the images it is for.
    """

    detail_codebook_size = None  # none of them makes pairs

    def __init__(self, model: Any, downsample: int, sample_size: int):
        super().__init__()
        self.model, self.downsample, self.sample_size = model.eval(), downsample, sample_size

    @property
    def codebook(self) -> Tensor:
        """The stored codebook (N, d)."""
        return self.model.quantize.embedding.weight

    @property
    def codebook_size(self) -> int:
        return len(self.codebook)

    @property
    def device(self) -> torch.device:
        return self.codebook.device

    def encode(self, pixels: Tensor) -> Tokens:
        """Ids of pixels (B, 3, H, W) in [-1, 1]."""
        grid = [side // self.downsample for side in pixels.shape[-2:]]
        return Tokens(self._ids(pixels).view(len(pixels), *grid))

    def decode(self, ids: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of ids (B, G, G).

        Raises:
            ValueError: ids outside of the codebook.
        """
        check_range(ids, self.codebook_size, "id")
        return self._pixels(ids)

    @abstractmethod
    def _ids(self, pixels: Tensor) -> Tensor:
        """Ids of pixels, in the order of (B, G, G) and any shape."""

    @abstractmethod
    def _pixels(self, ids: Tensor) -> Tensor:
        """Pixels of checked ids."""


class DiffusersTokenizer(LibraryTokenizer):
    """diffusers' VQModel: taming's, the latent diffusion models', aMUSEd's."""

    def _ids(self, pixels: Tensor) -> Tensor:
        _, _, (_, _, ids) = self.model.quantize(self.model.encode(pixels).latents)
        return ids

    def _pixels(self, ids: Tensor) -> Tensor:
        shape = (*ids.shape, self.codebook.shape[1])
        # One setting of the model says whether its `decode` takes ids or their rows.
        if self.model.config.lookup_from_codebook:
            return self.model.decode(ids, force_not_quantize=True, shape=shape).sample
        rows = self.model.quantize.get_codebook_entry(ids, shape)
        return self.model.decode(rows, force_not_quantize=True).sample


class JanusTokenizer(LibraryTokenizer):
    """transformers' JanusVQVAE."""

    def _ids(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels).image_tokens

    def _pixels(self, ids: Tensor) -> Tensor:
        # Its decoder is convolutional and takes any grid, but checks for the one it was trained on.
        self.model.quantize.quant_state_dims = list(ids.shape[1:])
        return self.model.decode(ids.flatten(1))


class Emu3Tokenizer(LibraryTokenizer):
    """transformers' Emu3VQVAE, for single images."""

    def _ids(self, pixels: Tensor) -> Tensor:
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        return torch.stack(self.model.encode(pixels, sizes).image_tokens)

    def _pixels(self, ids: Tensor) -> Tensor:
        return self.model.decode(ids)


def diffusers_tokenizer(folder: Path, weights: Path, source: str) -> DiffusersTokenizer:
    """diffusers' VQModel of a folder.

    Args:
        weights: the file in it that is read; its name may be that of a variant.

    Raises:
        ValueError: a config or weights that diffusers cannot load, or not all of them.
    """
    parts = weights.name.split(".")
    variant = parts[1] if len(parts) == 3 else None  # "name.fp16.safetensors"
    try:
        model, report = diffusers.VQModel.from_pretrained(
            folder, variant=variant, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # whatever a library says of a config or file it cannot take
        raise _unreadable(source, "diffusers", error) from None
    _check_names(source, report["missing_keys"], report["mismatched_keys"])
    side = model.config.sample_size
    downsample = 2 ** (len(model.config.block_out_channels) - 1)
    side = USUAL_SIDE if side == UNSAID else side
    return DiffusersTokenizer(model.float(), downsample, side - side % downsample)


def transformers_kind(settings: dict[str, Any]) -> str | None:
    """What a config.json of transformers holds as a VQ model: "janus" or "emu3", or None.

    Raises:
        ValueError: a model whose decoder transformers does not have.
    """
    name = str(settings.get("model_type"))
    for kind, words in DECODERLESS.items():
        if name.startswith(kind):
            raise ValueError(
                f"transformers has {words}'s encoder and no decoder, so no images can be decoded; "
                "leave --images out."
            )
    return next((kind for kind in ("janus", "emu3") if name in (kind, f"{kind}_vqgan")), None)


def transformers_tokenizer(
    kind: str, settings: dict[str, Any], weights: dict[str, Tensor], source: str
) -> LibraryTokenizer:
    """The VQ model of a Janus or Emu3 model, or of its VQ model alone.

    Args:
        kind: "janus" or "emu3".
        settings: of config.json.
        weights: those of the VQ model by their names in it.

    Raises:
        ValueError: a config that transformers cannot take, or weights that do not fit it.
    """
    import transformers

    prefix = {"janus": "Janus", "emu3": "Emu3"}[kind]
    try:
        # The whole model's config has the last word on its parts: Janus sets the grid by the side
        # of its images.
        if settings["model_type"] == kind:
            config = getattr(transformers, f"{prefix}Config").from_dict(settings).vq_config
        else:
            config = getattr(transformers, f"{prefix}VQVAEConfig").from_dict(settings)
        with torch.device("meta"):  # sizes that a config claims take no memory before the weights
            expected = getattr(transformers, f"{prefix}VQVAE")(config).state_dict()
        wrong = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
        _check_names(source, set(expected) - set(weights), wrong)
        model = getattr(transformers, f"{prefix}VQVAE")(config)
    except ValueError:
        raise
    except Exception as error:
        raise _unreadable(source, "transformers", error) from None
    model.load_state_dict({name: weights[name] for name in expected})
    downsample = 2 ** (len(config.channel_multiplier) - 1)
    if kind == "janus":
        return JanusTokenizer(model.float(), downsample, config.num_patches * downsample)
    return Emu3Tokenizer(model.float(), downsample, USUAL_SIDE)


def _check_names(source: str, missing: Any, mismatched: Any) -> None:
    """Raise a ValueError unless a VQ model's weights are all there, in their shapes."""
    for names, words in ((missing, "lacks"), (mismatched, "has in other shapes")):
        if names:
            found = listed(sorted(str(name) for name in names))
            raise ValueError(f"{source} {words} the weights {found}.")


def _unreadable(source: str, library: str, error: Exception) -> ValueError:
    reason = shortened(str(error) or type(error).__name__, 120).rstrip(".")
    return ValueError(f"{source} is no VQ model that {library} can load ({reason}).")
