"""What every metric says of photographs with noise, level by level.

    python tests/benchmarks/noise.py --data zh-plus/tiny-imagenet --features lite0

Photographs of the bundled pipeline's classes: one half is the reference of all distances; the
other, with more and more Gaussian noise, stands in the place of generated images. Level 0 is the
floor.
"""

import argparse

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.data.images import plain_batches
from codeclade.data.pixels import to_pixels, to_uint8
from codeclade.evaluation.feature_sets import FeatureSet, open_network, scores, set_distances
from codeclade.evaluation.reference import open_photographs
from codeclade.metrics.image_quality import QUALITIES
from codeclade.metrics.lpips_weights import find_lpips_weights, load_lpips

# Standard deviations, of pixels in [-1, 1]: faint noise, which everything sees, and strong noise.
LEVELS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.4, 0.8)


def noisy(pixels: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    """Pixels (B, 3, S, S) as an 8-bit file would hold them with noise."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(pixels.shape, generator=draws)
    return to_pixels(to_uint8(pixels + level * noise))


@torch.no_grad()
def measured(halves, network, lpips, level: float) -> dict[str, float]:
    """Every number at one level."""
    samples, quality = FeatureSet(network), {}
    for seed, (pixels, labels) in enumerate(halves[1]):
        images = noisy(pixels, level, seed)
        samples.add(images, labels)
        for name, one in QUALITIES.items():
            quality.setdefault(name, []).append(one.function(images, pixels))
        if lpips is not None:
            quality.setdefault(lpips.name, []).append(lpips(images, pixels))
    numbers = {one.name: one.value for one in set_distances(samples, halves[0])}
    numbers |= {one.name: one.value for one in scores(samples)}
    return numbers | {name: float(torch.cat(values).mean()) for name, values in quality.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--features", default="lite0", help="as of codeclade evaluate")
    parser.add_argument("--images", type=int, default=800, help="photographs of both halves")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    arguments = parser.parse_args()
    network = open_network(arguments.features)
    path = find_lpips_weights("alex")
    lpips = load_lpips("alex", path) if path else None
    names = CodecladePipeline.load_config(bundled())["id2label"]
    own = [names[str(i)] for i in range(len(names))]
    photographs = open_photographs(arguments.data, arguments.size, own=own).few(arguments.images)

    reference, others = FeatureSet(network), []
    for images, labels in plain_batches(photographs.images, 32):
        pixels = to_pixels(images)
        reference.add(pixels[::2], labels[::2])
        others.append((pixels[1::2], labels[1::2]))
    columns = []
    for level in LEVELS:
        columns.append(measured((reference, others), network, lpips, level))
        print(f"level {level} measured", flush=True)
    print(f"| noise | {' | '.join(f'{level:g}' for level in LEVELS)} |")
    print("| --- |" + " --- |" * len(LEVELS))
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.3g}' for column in columns)} |")


if __name__ == "__main__":
    main()
