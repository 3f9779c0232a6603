"""What docs/performance.md says of decoding: pixels by the tokenizer, and tokens several a pass.

    python tests/benchmarks/decoding.py --threads 2

A tokenizer of VQ-16's shape with random weights decodes in float32 and in bfloat16 as
`optimize` leaves it; PSNR compares the images of both dtypes, also of that of `bundled("ids")`.
Tokens a pass are those of its pipeline's single images.
"""

import argparse
import statistics
import time

import torch
from memory import vq_16

from codeclade import CodecladePipeline, VQModel, bundled
from codeclade.components.generation import SamplingSettings, draw_uniforms
from codeclade.components.optimization import optimize_decoder
from codeclade.components.parallel import sample_in_parallel
from codeclade.evaluation import speed
from codeclade.metrics.image_quality import psnr


def in_bf16(vq_model: VQModel) -> VQModel:
    """A copy with the decoder in bfloat16, as `pipe.optimize()` leaves it."""
    copy = VQModel.from_config(vq_model.config).eval()
    copy.load_state_dict(vq_model.state_dict())
    copy.to(torch.bfloat16)
    optimize_decoder(copy)
    return copy


@torch.no_grad()
def decode(name: str, vq_model: VQModel, grid: int, images: int) -> None:
    """Print seconds an image of both dtypes, and the PSNR between them."""
    half, seconds, found = in_bf16(vq_model), {"float32": [], "bfloat16": []}, []
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(vq_model.codebook_size, (images, grid, grid), generator=draws)
    for one in ids.split(1):
        made = []
        for way, model in (("float32", vq_model), ("bfloat16", half)):
            model.decode(one)
            start = time.perf_counter()
            made.append(model.decode(one).float())
            seconds[way].append(time.perf_counter() - start)
        found += psnr(*made).tolist()
    first, second = (statistics.median(times) for times in seconds.values())
    print(
        f"{name}, {grid * vq_model.downsample} pixels: {first:.3f} s in float32, {second:.3f} in "
        f"bfloat16 ({first / second:.1f}x), at least {min(found):.1f} dB between them"
    )


@torch.no_grad()
def passes(pipe: CodecladePipeline, window: int) -> None:
    """Print how many tokens a pass of single images of all classes are decoded."""
    counts = []
    settings = SamplingSettings(temperature=0.9, guidance_scale=5.0)
    for label in range(pipe.transformer.config.num_classes):
        draws = draw_uniforms(1, pipe.transformer, torch.Generator().manual_seed(label))
        given = pipe.encode_condition([label])
        sample_in_parallel(
            pipe.transformer, *given, draws.tokens, settings, window, None,
            lambda count: counts.append(count) or False,
        )  # fmt: skip
    print(f"windows of {window}: {sum(counts) / len(counts):.2f} tokens a pass")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(speed.machine("cpu"))
    decode("VQ-16, random weights", vq_16(), 16, arguments.images)
    pipe = CodecladePipeline.from_pretrained(bundled("ids"), dtype=torch.float32)
    decode("the tokenizer of bundled('ids')", pipe.vq_model, 8, 8 * arguments.images)
    for window in (8, 16):
        passes(pipe, window)


if __name__ == "__main__":
    main()
