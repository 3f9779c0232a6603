"""What an evaluation will do, in the lines that are printed before it starts."""

from ..metrics.networks import FeatureNetwork
from .reference import Photographs
from .sampling import Pipeline, Sampling, image_side

PHOTOGRAPHS, IMAGES = 128, 64  # of a first look: at most so many are compared and sampled


def reconstruction_plan(photographs: Photographs, size: int, lpips: bool, quick: bool) -> str:
    """The line of the tokenizer's part.

    Args:
        size: pixels a side at which images are compared.
        lpips: whether its weights are here.
    """
    names = ["PSNR", "SSIM", *(["LPIPS"] if lpips else [])]
    names += [] if quick else ["distance of the sets", "use of the codebook"]
    count = f"{len(photographs.images):,} photographs"
    return f"  reconstruct  {count} at {size} pixels: {', '.join(names)}"


def sampling_plan(
    pipe: Pipeline,
    sampling: Sampling,
    network: FeatureNetwork | None,
    clip: bool,
    quick: bool,
) -> str:
    """The line of the generator's part.

    Args:
        network: None measures no distances.
        clip: whether images are compared with their captions.
    """
    labels = sampling.labels(pipe)
    kinds = f"{len(labels.unique()):,} {'prompts' if sampling.prompts else 'classes'}"
    size = sampling.size or image_side(pipe)
    names = ["CLIP score"] if clip else []
    if network is not None:
        distances = "KID" if quick else "distances, precision and recall, scores"
        names += [f"{distances} by {network.name}"]
    words = f"  generate     {len(labels):,} images of {kinds} at {size} pixels"
    words += f", best of {sampling.draws} draws" if sampling.draws > 1 else ""
    return words + (f": {', '.join(names)}" if names else "")
