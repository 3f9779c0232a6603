"""CLIP score: how well images show their captions (Hessel et al. 2021, arXiv 2104.08718).

100 max(cos, 0) of image and text features, which is torchmetrics' scale; the paper's own is
2.5 max(cos, 0), and LlamaGen's evaluation takes the plain cosine with "A photo depicts" before the
caption. Only numbers of one CLIP model can be compared.

Shapes: B images.
"""

from pathlib import Path

import torch
from torch import Tensor

from .networks import FrozenNetwork, resized, state_fingerprint

# Of values in [0, 1]; OpenAI's, which later CLIP models kept.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipScore(FrozenNetwork):
    """A CLIP model that compares images with captions.

    Args:
        model: Hub id or folder of a transformers `CLIPModel` with its tokenizer, as in
            "openai/clip-vit-large-patch14"; safetensors alone.
        revision: of the Hub repository.

    Raises:
        ValueError: a folder of another kind of model.
        OSError: no such model, or one without weights in safetensors.
    """

    def __init__(self, model: str | Path, revision: str | None = None):
        super().__init__()
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        # Other kinds load too, with weights that were never trained.
        kind = AutoConfig.from_pretrained(model, revision=revision).model_type
        if kind != "clip":
            raise ValueError(f"{model} is a {kind} model, not CLIP.")
        self.net = CLIPModel.from_pretrained(
            model, revision=revision, use_safetensors=True, dtype=torch.float32
        )
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        self.freeze()
        # What a protocol says of the network, and what pictures and captions it takes.
        self.name = Path(model).name
        self.input_size = self.net.config.vision_config.image_size
        self.length = self.net.config.text_config.max_position_embeddings
        self.fingerprint = state_fingerprint(self.net.state_dict())

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1] as CLIP's input: bicubic, antialiased, normalized."""
        mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
        return ((resized(pixels, self.input_size) + 1) / 2 - mean) / std

    @torch.no_grad()
    def forward(self, pixels: Tensor, captions: list[str]) -> Tensor:
        """Scores (B,) in [0, 100] of square images (B, 3, S, S) in [-1, 1] with their captions.

        Captions of more tokens than CLIP reads are cut.
        """
        tokens = self.tokenizer(
            captions, max_length=self.length, truncation=True, padding=True, return_tensors="pt"
        )
        given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        given["pixel_values"] = self.preprocess(pixels)
        found = self.net(**{name: x.to(self.net.device) for name, x in given.items()})
        # Both are of length 1 already, so the cosine is a plain product.
        return 100 * (found.image_embeds * found.text_embeds).sum(1).clamp(min=0).cpu()
