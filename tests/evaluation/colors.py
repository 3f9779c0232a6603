"""A network of features that takes no time, in the place of EfficientNet."""

import torch

from codeclade.metrics.networks import FrozenNetwork, NetworkOutput, resized


class Colors(FrozenNetwork):
    """Sixteen features, six spatial ones and ten logits; counts the images that it sees."""

    name, distance_name, fingerprint, seen = "colors", "FD-colors", "1" * 64, 0

    def __init__(self):
        super().__init__()
        weights = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
        self.weights = torch.nn.Parameter(weights, requires_grad=False)

    def forward(self, pixels):
        self.seen += len(pixels)
        features = (resized(pixels, 4).flatten(1) @ self.weights.T).tanh()
        return NetworkOutput(features, features[:, :10], features[:, 10:])
