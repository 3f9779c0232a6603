"""Settings of `codeclade train-tokenizer`, checked before any work starts."""

from dataclasses import dataclass, field

from .photographs import Photographs
from .recipe import RunRecipe, check_settings

# What `perceptual` names, and the smallest image that the network's poolings leave something of.
PERCEPTUAL = {"none": 1, "lite0": 1, "alex": 31, "vgg": 16, "vgg_relu3_3": 4}
CHOICES = {
    "stage": ("joint", "semantic"),
    "trainable": ("all", "decoder"),
    "pixel_loss": ("l1", "l2"),
    "perceptual": tuple(PERCEPTUAL),
    "classifier": ("none", "lite0", "lite2"),
    "codebook_update": ("gradient", "ema"),
}


@dataclass(kw_only=True)
class TokenizerRecipe(RunRecipe, Photographs):
    """Settings of `codeclade train-tokenizer`.

    Raises:
        ValueError: a value that cannot be, or values that do not go together.
    """

    shuffle_buffer: int = 1000  # streamed images that are shuffled among each other
    init_from: str = ""  # weights to start from: VQModel, pipeline or run folder, or Hub id
    trainable: str = "all"  # all, or decoder: ids stay as init_from has them, and fit its generator
    block_out_channels: list = field(default_factory=lambda: [128, 128, 256, 256, 512])  # widths
    layers_per_block: int = 2  # residual blocks a level of the encoder; the decoder has one more
    latent_channels: int = 256  # width between the levels and the codebook
    codebook_size: int = 16384  # number of codes N
    codebook_dim: int = 8  # numbers a code
    detail_codebook_size: int | None = None  # codes of a second codebook (IAR2); null = none
    stage: str = "joint"  # joint, or semantic: IAR2's first stage, one codebook, no pixel loss
    semantic_every: int = 3  # steps between updates of the first of two codebooks (IAR2)
    pixel_loss: str = "l2"  # l1 or l2
    pixel_weight: float = 1.0  # of the pixel loss; stage=semantic has none
    perceptual: str = "lite0"  # lite0 (EfficientNet), LPIPS's alex, vgg or vgg_relu3_3, or none
    perceptual_weights: str = ""  # .safetensors file of LPIPS; empty = the one in the cache
    perceptual_weight: float = 1.0  # of the perceptual loss; 0 needs no extra package
    classifier: str = "none"  # lite0 or lite2 (EfficientNet): images shall be classified alike
    classifier_weight: float = 0.0  # of the squared distance of its logits
    classifier_size: int = 128  # pixels a side that it sees; larger is slower
    mirrored_border: int = 0  # pixels mirrored outward for these networks, which see borders badly
    discriminator_weight: float = 0.0  # of the PatchGAN's hinge loss; 0 = no discriminator
    discriminator_adaptive: bool = False  # times ratio of gradients at the decoder's last layer
    discriminator_start: int = 20_000  # steps before it joins
    discriminator_channels: int = 64  # width of its first layer, a multiple of 32
    discriminator_layers: int = 3  # halvings of the image in it
    codebook_update: str = "gradient"  # gradient, or ema: running means of the latents of a code
    codebook_decay: float = 0.99  # of those means, a step
    codebook_weight: float = 1.0  # pulls codes to the latents
    commitment_weight: float = 0.25  # pulls latents to their codes
    entropy_weight: float = 0.0  # makes every choice of a code sure and all codes used alike
    entropy_temperature: float = 0.01  # of the squared distances in it
    revive_every: int = 200  # steps between restarts of codes unused since the last; 0 = never
    batch_size: int = 128  # images a step, of all processes and passes together
    weight_decay: float = 0.0  # of AdamW
    ema_decay: float = 0.0  # of the averaged weights, which are what is saved; 0 = no average
    evaluate_every: int = 5000  # steps between validations

    def __post_init__(self):
        super().__post_init__()
        self.check_photographs()
        counts = ("image_size", "shuffle_buffer", "codebook_size", "codebook_dim", "semantic_every")
        counts = (*counts, "classifier_size")
        check_settings(self, *counts, "discriminator_channels", "discriminator_layers")
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}."
                )
        # Numbers that a loss or an average cannot do without.
        weights = [name for name in vars(self) if name.endswith("_weight")]
        for name in (*weights, "discriminator_start", "revive_every", "mirrored_border"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.detail_codebook_size is not None and self.detail_codebook_size < 1:
            raise ValueError(
                f"detail_codebook_size is {self.detail_codebook_size}; it must be at least 1, "
                "or null for one codebook."
            )
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"codebook_decay is {self.codebook_decay}; it must be in [0, 1).")
        if self.entropy_temperature <= 0:
            raise ValueError(
                f"entropy_temperature is {self.entropy_temperature}; it must be above 0."
            )

    def _check_combinations(self) -> None:
        # What a stream cannot do.
        if self.streaming and self.epochs:
            raise ValueError(
                "streaming does not know the number of images: give steps, not epochs."
            )
        if self.streaming and self.workers > 1:
            raise ValueError(
                f"workers is {self.workers}; a streamed data set is read by one: it must be 0 or 1."
            )
        # Stages and losses that leave a part without gradient.
        if self.stage == "semantic" and self.detail_codebook_size is None:
            raise ValueError(
                "stage is 'semantic', which is the first of two stages; detail_codebook_size must "
                "say how large the second codebook will be."
            )
        if self.trainable == "decoder":
            for name, needed in (("stage", "joint"), ("codebook_update", "gradient")):
                if getattr(self, name) != needed:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}; with trainable=decoder, which leaves "
                        f"the codebook alone, it must be {needed!r}."
                    )
            if not self.init_from:
                raise ValueError(
                    "trainable is 'decoder', which keeps an encoder and a codebook; init_from must "
                    "say whose."
                )
        if not self.pixel_used and self.perceptual_name == "none":
            raise ValueError(
                f"stage is {self.stage!r}, pixel_weight {self.pixel_weight}, perceptual "
                f"{self.perceptual!r} of weight {self.perceptual_weight}: nothing trains the "
                "decoder; a pixel loss (in stage joint) or a perceptual loss must."
            )

        # Sizes of images that the networks can take.
        downsample = 2 ** (len(self.block_out_channels) - 1)
        if self.image_size % downsample:
            raise ValueError(
                f"image_size is {self.image_size}; it must be a multiple of {downsample}, by which "
                f"{len(self.block_out_channels)} block_out_channels downsample."
            )
        if self.classifier_weight and self.classifier == "none":
            raise ValueError(
                f"classifier_weight is {self.classifier_weight}, but classifier is 'none'; choose "
                "lite0 or lite2."
            )
        if self.mirrored_border >= self.image_size:
            raise ValueError(
                f"mirrored_border is {self.mirrored_border}; it must be less than the "
                f"{self.image_size} pixels of an image."
            )
        # Networks of the losses halve the image too, so many times that a small one vanishes.
        smallest = {f"perceptual={self.perceptual_name}": PERCEPTUAL[self.perceptual_name]}
        if self.discriminator_weight:
            name = f"discriminator_layers={self.discriminator_layers}"
            smallest[name] = 3 * 2**self.discriminator_layers
            if self.discriminator_channels % 32:
                raise ValueError(
                    f"discriminator_channels is {self.discriminator_channels}; it must be a "
                    "multiple of 32."
                )
        for name, size in smallest.items():
            if self.image_size < size:
                raise ValueError(
                    f"image_size is {self.image_size}; it must be at least {size} for {name}."
                )

    @property
    def details(self) -> int | None:
        """Size of the second codebook in this stage; None without one."""
        return self.detail_codebook_size if self.stage == "joint" else None

    @property
    def restarts_every(self) -> int:
        """Steps between restarts of dead codes; 0: never."""
        return self.revive_every if self.trainable == "all" else 0

    @property
    def pixel_used(self) -> float:
        """Weight of the pixel loss in this stage."""
        return self.pixel_weight if self.stage == "joint" else 0.0

    @property
    def classifier_name(self) -> str:
        """The network of the classifier's loss; "none" where it has no weight."""
        return self.classifier if self.classifier_weight else "none"

    @property
    def perceptual_name(self) -> str:
        """The network of the perceptual loss; "none" where it has no weight."""
        return self.perceptual if self.perceptual_weight else "none"
