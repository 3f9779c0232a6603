"""Train a VQModel: pixel, perceptual, adversarial and codebook losses, dead codes restarted.

LlamaGen's tokenizer recipe (arXiv 2406.06525, section 3.1) and the two stages of IAR2's (arXiv
2510.06928): first the semantic codebook alone and without pixel loss, then both. The result is a
plain VQModel folder.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..components.vq_model import VQModel
from ..data.atomic import new_file
from ..data.images import LabeledImages
from ..data.pixels import to_pixels
from ..data.streaming import ImageStream
from .batches import StreamOrder
from .codebook_training import CodebookTraining
from .discriminator import Adversary, adaptive_weight
from .optimization import build_optimizer
from .run import Run
from .sharding import check_whole
from .start_table import DataSummary
from .tokenizer_losses import ImageLosses, TokenizerPass
from .tokenizer_recipe import TokenizerRecipe
from .tokenizer_start import DISCRIMINATOR, start_from
from .tokenizer_validation import BestTokenizer, evaluate_tokenizer, save_reconstructions

__all__ = ["TokenizerRecipe", "train_tokenizer"]

HELD_OUT = 1000  # images of a streamed data set that are kept for validation
REVIVE_UNTIL = 0.8  # share of the steps after which the codebook settles


def train_tokenizer(recipe: TokenizerRecipe, out: str | Path) -> VQModel:
    """Train a tokenizer and save it in `out`; a second call with the same recipe goes on.

    Writes vq_model/ (the model), best/ (that of the lowest validation loss), log.jsonl,
    reconstructions.png, checkpoints/, and discriminator.safetensors if there is one.

    Raises:
        ValueError: data or weights that are not there, a folder with another recipe's run, or a
            launch that would share out the weights (FSDP).
    """
    # Networks and data first: what is wrong with them is said before any work.
    image_losses = ImageLosses(recipe)
    run = Run(recipe, out)
    check_whole(run.accelerator, "tokenizer")
    images, held_out = _photographs(recipe)
    count = None if recipe.streaming else len(images)

    # Weights: drawn, then those of `init_from`, then those of the newest checkpoint.
    training = TokenizerTraining(run, recipe, image_losses)
    training.start()
    classes = len(images.class_names)
    run.describe(DataSummary(recipe.data, count, len(held_out), classes))
    best = BestTokenizer(run.out, resumed=run.first > 0)
    _train(training, images, held_out, best)

    vq_model = run.finished_model().vq_model
    if run.accelerator.is_main_process:
        vq_model.save_pretrained(run.out / "vq_model")
        run.record(run.out / "vq_model", "tokenizer")
        if training.adversary is not None:
            network = training.adversary.plain_network
            with new_file(run.out / DISCRIMINATOR) as partial:
                save_file({k: v.cpu() for k, v in network.state_dict().items()}, partial)
    return vq_model


def _photographs(recipe: TokenizerRecipe) -> tuple[LabeledImages | ImageStream, LabeledImages]:
    """Images to train on, and those held out; of a stream the first ones of its other split."""
    images, held_out = recipe.open("train"), recipe.open("validation")
    if isinstance(held_out, ImageStream):
        held_out = held_out.first(HELD_OUT, recipe.image_size)
    return images, held_out


def _train(
    training: "TokenizerTraining",
    images: LabeledImages | ImageStream,
    held_out: LabeledImages,
    best: BestTokenizer,
) -> None:
    run, recipe, main = training.run, training.recipe, training.run.accelerator.is_main_process
    run.model.train()
    # A stream has no length, so it keeps the order of images itself.
    stream = None
    if recipe.streaming:
        stream = StreamOrder(images, recipe.image_size, recipe.crop, recipe.shuffle_buffer)
    for done, batch in run.steps(stream or images):
        run.log_losses(done, training.step(done, batch))
        if done % recipe.log_every == 0:
            run.log(done, training.usage())
        # Restarts stop early, so that all codes settle before the end.
        due = recipe.restarts_every and done % recipe.restarts_every == 0
        if due and done < REVIVE_UNTIL * run.total:
            run.log(done, training.revive())
        if run.evaluates(done):
            # Held-out photographs, by the weights that would be saved; the best of them are kept.
            with run.averaged_weights():
                model, size = run.plain_model, len(batch[0])
                found = evaluate_tokenizer(
                    model, training.image_losses, held_out, run.accelerator, min(100, size)
                )
                run.log(done, found)
                best.offer(model.vq_model, done, found, write=main)
                if main:
                    path = run.out / "reconstructions.png"
                    save_reconstructions(model.vq_model, held_out, path)


class TokenizerTraining:
    """Everything that one step of a tokenizer moves: model, codebooks, discriminator.

    Args:
        run: before its `start`.
    """

    def __init__(self, run: Run, recipe: TokenizerRecipe, image_losses: ImageLosses):
        # The tokenizer's weights are drawn first: a discriminator does not change them.
        self.run, self.recipe = run, recipe
        self.image_losses = image_losses.to(run.accelerator.device)
        self.vq_model = VQModel(
            block_out_channels=tuple(recipe.block_out_channels),
            layers_per_block=recipe.layers_per_block,
            latent_channels=recipe.latent_channels,
            codebook_size=recipe.codebook_size,
            codebook_dim=recipe.codebook_dim,
            sample_size=recipe.image_size,
            detail_codebook_size=recipe.details,
        )
        # What only some recipes train.
        self.adversary = Adversary(recipe, run.accelerator) if recipe.discriminator_weight else None
        self.done = 0  # steps, with the one under way
        self.codebooks: list[CodebookTraining] = []
        self.passes: list[tuple[Tensor, Tensor]] = []  # images of this step and reconstructions

    def start(self) -> None:
        """Load the weights to start from, prepare for the devices, load the newest checkpoint."""
        run, recipe, accelerator = self.run, self.recipe, self.run.accelerator
        if recipe.init_from and run.folder.newest() is None:
            network = self.adversary.network if self.adversary else None
            with accelerator.main_process_first():  # one process fills the cache of downloads
                said = start_from(recipe.init_from, self.vq_model, network)
            accelerator.print(said)

        # What shall stay is frozen before the optimizer sees it.
        if recipe.trainable == "decoder":
            self.vq_model.requires_grad_(False)
            for part in (self.vq_model.post_quant_conv, self.vq_model.decoder):
                part.requires_grad_(True)

        # Codebooks that are running means take their rows from the optimizer.
        decay = recipe.codebook_decay if recipe.codebook_update == "ema" else None
        rows = [("", self.vq_model.codebook, True)]
        if recipe.details is not None:
            rows.append(("detail_", self.vq_model.quantize.detail, False))
        self.codebooks = [CodebookTraining(*one, decay, accelerator) for one in rows]
        optimizer = build_optimizer(self.vq_model, recipe)

        # The averaged weights of `Run` are taken right after the optimizer's step, so codebooks
        # that are not the optimizer's move inside it.
        optimizer.register_step_pre_hook(lambda *_: self._before_update())
        optimizer.register_step_post_hook(lambda *_: self._after_update())
        if self.adversary is not None:
            self.adversary.prepare()
        run.start(TokenizerPass(self.vq_model, recipe), optimizer, *self.codebooks)

    @property
    def semantic_due(self) -> bool:
        """Whether this step moves the first codebook: of two it moves every third step (IAR2)."""
        return self.recipe.details is None or self.done % self.recipe.semantic_every == 0

    def step(self, done: int, batch: list[Tensor]) -> dict[str, Tensor]:
        """One step of the tokenizer and then of the discriminator.

        Args:
            done: steps done with it.
            batch: uint8 images (B, 3, H, W) and labels, this process's.

        Returns:
            Means over the batch, by name.
        """
        self.done = done
        self.passes.clear()
        for codebook in self.codebooks:
            codebook.clear()
        means = self.run.optimize(batch, self.losses)
        if self.adversary is not None and self.adversary.active(done):
            rate = self.run.optimizer.param_groups[0]["lr"]
            means |= self.adversary.step(self.passes, rate)
        return means

    def losses(self, batch: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of one pass by name; "loss" is minimized."""
        # Terms that compare images act on what the model returns, outside the module that
        # DistributedDataParallel wraps.
        run, recipe, accelerator = self.run, self.recipe, self.run.accelerator
        pixels = to_pixels(batch.to(accelerator.device))
        reconstruction, losses, assigned = run.model(pixels, hold_semantic=not self.semantic_due)
        for codebook, one in zip(self.codebooks, assigned, strict=True):
            codebook.add(one)
        with accelerator.autocast():
            compared = self.image_losses(reconstruction, pixels)
        losses = losses | compared
        total = self.image_losses.weighted(losses)

        # The adversarial term, if its time has come.
        if self.adversary is not None and self.adversary.active(self.done):
            self.passes.append((pixels, reconstruction.detach()))
            with accelerator.autocast():
                penalty = self.adversary.penalty(reconstruction)
            weight = torch.tensor(recipe.discriminator_weight, device=pixels.device)
            if recipe.discriminator_adaptive:
                last = self.vq_model.decoder.conv_out.weight
                of_images = self.image_losses.weighted(compared)
                weight = weight * adaptive_weight(of_images, penalty, last, accelerator)
            total = total + weight * penalty
            losses |= {"adversarial": penalty, "adversarial_weight": weight}
        return losses | {"loss": total}

    def usage(self) -> dict[str, float]:
        """Usage and perplexity since the last call and codes dead by now, of every codebook."""
        return {
            f"train_{one.name}{key}": value
            for one in self.codebooks
            for key, value in one.usage.statistics().items()
        }

    def revive(self) -> dict[str, float]:
        """Restart dead codes of every codebook; how many of each moved."""
        optimizer = self.run.optimizer.optimizer  # below accelerate's wrapper
        return {f"{one.name}dead_codes": one.revive(optimizer) for one in self.codebooks}

    def _before_update(self) -> None:
        if not self.semantic_due:
            self.vq_model.codebook.grad = None  # else the optimizer's momentum would move it

    def _after_update(self) -> None:
        for codebook in self.codebooks if self.semantic_due else self.codebooks[1:]:
            codebook.update()
