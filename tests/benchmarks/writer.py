"""Memory of writing many images: parts of 64, and the .npz file that ADM's evaluator reads.

    python tests/benchmarks/writer.py --images 50000 --size 256 --folder /tmp

The images are synthetic, so that the writer alone is measured. It takes twice the images' bytes on
the disk, 20 GB for the above.
"""

import argparse
import resource
import tempfile
import zipfile
from pathlib import Path

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.evaluation import sampling
from codeclade.evaluation.sampling import SampleParts, Sampling


def synthetic(side: int):
    """In the place of `sample_images`: patterns that differ from image to image."""
    pattern = torch.arange(3 * side * side).view(1, 3, side, side)

    def images(pipe, plan, numbers: list[int], *rest) -> torch.Tensor:
        return ((pattern + torch.tensor(numbers).view(-1, 1, 1, 1)) % 251).to(torch.uint8)

    return images


def peak() -> str:
    """Most memory that this process ever held."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--folder", help="where there is room; default: the system's temporary one")
    arguments = parser.parse_args()
    sampling.sample_images = synthetic(arguments.size)
    pipe = CodecladePipeline.from_pretrained(bundled())
    classes = pipe.transformer.config.num_classes
    print(f"before: {peak()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        parts = SampleParts(Path(folder), pipe, Sampling(-(-arguments.images // classes)))
        parts.make(32)
        print(f"{len(parts):,} images of {arguments.size} pixels in parts: {peak()}")
        parts.write_npz(Path(folder) / "images.npz")
        with zipfile.ZipFile(Path(folder) / "images.npz") as file:
            size = file.getinfo("arr_0.npy").file_size
        print(f"as .npz, {size:,} bytes: {peak()}")


if __name__ == "__main__":
    main()
