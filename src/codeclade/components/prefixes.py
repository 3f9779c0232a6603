"""What stands before the tokens of an image: a class or a caption as vectors of the decoder.

LlamaGen (arXiv 2406.06525). Must stay numerically equal to the published c2i_*.pt and t2i_*.pt
(see checkpoints/).

Shapes: B batch, P prefix positions, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder_config import DecoderConfig


class ClassPrefix(nn.Module):
    """Class label to one prefix vector; row `num_classes`, where there is one, is the null class.

    Args:
        null_class: whether there is a null class, which labels dropped in training become.
    """

    def __init__(self, config: DecoderConfig, null_class: bool = True):
        super().__init__()
        self.embedding = nn.Embedding(config.num_classes + int(null_class), config.hidden_size)
        self.null, self.drop = config.num_classes, config.class_dropout

    def forward(self, class_labels: Tensor) -> Tensor:
        if self.training and self.drop:
            # An untrained null class would give guidance nothing to lead away from.
            dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.drop
            class_labels = class_labels.masked_fill(dropped, self.null)
        return self.embedding(class_labels).unsqueeze(1)  # (B, 1, D)


class TextPrefix(nn.Module):
    """Text features (B, P, text_dim) to prefix vectors; `null` is the learned empty caption."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.text_dim, config.hidden_size, bias=False)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.null = nn.Parameter(torch.empty(config.prefix_length, config.text_dim))
        self.drop = config.class_dropout

    def forward(self, text_embeds: Tensor | None = None) -> Tensor:
        """Prefix (B, P, D) of text features, or without any a copy of `null` (P, text_dim).

        Offloading brings parameters to the device for as long as `forward` runs, so `null` is
        asked for here.
        """
        if text_embeds is None:
            return self.null.clone()
        if self.training and self.drop:
            dropped = torch.rand(len(text_embeds), 1, 1, device=text_embeds.device) < self.drop
            text_embeds = torch.where(dropped, self.null.to(text_embeds), text_embeds)
        return self.fc2(F.gelu(self.fc1(text_embeds), approximate="tanh"))  # (B, P, D)
