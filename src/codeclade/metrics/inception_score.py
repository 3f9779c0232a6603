"""Inception Score (Salimans et al. 2016, arXiv 1606.03498), from a classifier's logits."""

import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over parts of the images, as published; see `split_scores`."""
    scores = split_scores(logits, splits)
    return float(scores.mean()), float(scores.std(correction=0))


def split_scores(logits: Tensor, splits: int = 10) -> Tensor:
    """exp(E KL(p(y|x) || p(y))) of `splits` parts of the images, (splits,) float64.

    Parts are runs of images in the order given, as in ADM's evaluator (which cuts parts of 5,000:
    `splits=10` for 50,000 images). Images sorted by class must be shuffled first: a part with few
    classes has a low score. Published scores use Inception's 1,008 logits without bias.

    Args:
        logits: (n, C).

    Raises:
        ValueError: logits of another shape, or more parts than images.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"logits must be (n, C) and splits 1 to n, got {tuple(logits.shape)} and {splits}."
        )
    scores = []
    for part in logits.tensor_split(splits):
        log_p = part.double().log_softmax(1)
        p = log_p.exp()
        # Terms with p(y) = 0 are 0: the smallest double keeps the logarithm finite.
        log_marginal = p.mean(0).clamp_min(torch.finfo(torch.float64).tiny).log()
        scores.append((p * (log_p - log_marginal)).sum(1).mean().exp())
    return torch.stack(scores)
