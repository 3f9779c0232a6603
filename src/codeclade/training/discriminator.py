"""PatchGAN: a discriminator of overlapping patches, trained beside a tokenizer by the hinge loss.

The network is that of pix2pix (arXiv 1611.07004, appendix 6.1.2) as VQGAN (arXiv 2012.09841) and
LlamaGen use it, with GroupNorm where they have BatchNorm, so that a step is the same for every
number of processes and passes. No published weights fit it.

Shapes: B images, H W their sides, h w the grid of patches.
"""

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from .optimization import build_optimizer
from .tokenizer_recipe import TokenizerRecipe

LARGEST = 1e4  # of the adaptive weight


class PatchDiscriminator(nn.Module):
    """Logits (B, 1, h, w) of patches of images (B, 3, H, W): above 0 for photographs.

    Args:
        channels: width of the first layer, a multiple of 32.
        layers: convolutions of stride 2; two of stride 1 follow. Three see patches of 70 pixels.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        # Reflected borders: zeros would tell it where the border is, and decoders then learn to
        # leave a mark there.
        border = {"padding": 1, "padding_mode": "reflect"}
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, **border), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts.append(nn.Conv2d(widths[i - 1], widths[i], 4, stride, bias=False, **border))
            parts += [nn.GroupNorm(32, widths[i]), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, **border))
        self.layers = nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (arXiv 1705.02894): mean (relu(1 - D(x)) + relu(1 + D(y))) / 2.

    Args:
        real, fake: logits of photographs x and of reconstructions y.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def adaptive_weight(
    loss: Tensor, adversarial: Tensor, last_layer: Tensor, accelerator: Accelerator
) -> Tensor:
    """|gradient of the loss| / |gradient of the adversarial term| at a weight (VQGAN, eq. 7).

    Gradients are averaged over processes first, so that all find one ratio.

    Args:
        loss: reconstruction terms, weighted.
        adversarial: -mean D(y), without weight.
        last_layer: weight of the decoder's last convolution.
    """
    # In float16 small gradients would vanish, so they are scaled like those of the step.
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    norms = []
    for term in (loss, adversarial):
        (gradient,) = torch.autograd.grad(term * scale, last_layer, retain_graph=True)
        norms.append(accelerator.reduce(gradient.float(), "mean").norm() / scale)
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=LARGEST)


class Adversary:
    """Discriminator and its optimizer; checkpoints of the run hold both.

    Make it after the tokenizer's weights are drawn and before `Run.start`.
    """

    def __init__(self, recipe: TokenizerRecipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        network = PatchDiscriminator(recipe.discriminator_channels, recipe.discriminator_layers)
        self.network, self.optimizer = network, build_optimizer(network, recipe)

    def prepare(self) -> None:
        """To the device, wrapped for several processes and known to checkpoints."""
        prepared = self.accelerator.prepare(self.network, self.optimizer)
        self.network, self.optimizer = prepared

    @property
    def plain_network(self) -> PatchDiscriminator:
        """The network without accelerate's wrapper; shares its weights."""
        return self.accelerator.unwrap_model(self.network)

    def active(self, done: int) -> bool:
        """Whether it takes part in the step after which `done` steps are done."""
        return done > self.recipe.discriminator_start

    def penalty(self, reconstruction: Tensor) -> Tensor:
        """The tokenizer's term, -mean D(y); the discriminator gets no gradient of it."""
        network = self.plain_network.requires_grad_(False)
        logits = network(reconstruction)
        network.requires_grad_(True)
        return -logits.float().mean()

    def step(self, passes: Sequence[tuple[Tensor, Tensor]], rate: float) -> dict[str, Tensor]:
        """One optimizer step after the tokenizer's own, on the images of that step.

        Args:
            passes: (photographs, reconstructions), both (B, 3, H, W), of every pass.
            rate: learning rate.

        Returns:
            Means over this process's share: discriminator loss and mean logits.
        """
        # As in `Run.optimize`: only the last pass exchanges gradients between processes. One call
        # holds both kinds of images, as DistributedDataParallel wants one forward a backward.
        means: dict[str, Tensor] = {}
        for index, (real, fake) in enumerate(passes):
            last = index == len(passes) - 1
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)
            with alone:
                logits = self.network(torch.cat([real, fake.detach()]))
                of_real, of_fake = logits.float().chunk(2)
                loss = discriminator_loss(of_real, of_fake)
                self.accelerator.backward(loss)
            found = {"discriminator": loss, "real_logit": of_real, "fake_logit": of_fake}
            for name, value in found.items():
                means[name] = means.get(name, 0) + value.detach().mean() / len(passes)

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return means
