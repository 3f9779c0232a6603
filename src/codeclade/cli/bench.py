"""`codeclade bench`: how fast a generator is on this machine, beside reading its weights once."""

import argparse
from pathlib import Path

from .arguments import add_verb, check_device, check_positive

DTYPES = ("bfloat16", "float32")


def add_bench(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "bench",
        _bench,
        "time a generator on this machine",
        "codeclade bench llamagen:b-256 --batches 1 8 --json speed.json",
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="PIPELINE|SHAPE",
        help="folder of a pipeline, or FAMILY:SIZE of a recipe with random weights; default: the "
        "bundled pipeline",
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        metavar="WAY",
        help="eager, packed, single, int8, int4, compiled (minutes), parallel (trained pipelines, "
        "one image); default: all but compiled that this device has",
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 8], metavar="B", help="default: 1 8"
    )
    # How it is measured.
    parser.add_argument("--steps", type=int, default=128, metavar="N", help="tokens timed; 128")
    parser.add_argument("--guidance-scale", type=float, default=2.0, metavar="S", help="default 2")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    # Where it is measured, and what is written.
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    parser.add_argument("--device", help="default: cuda where available, else cpu")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    parser.add_argument("--quick", action="store_true", help="batch 1, few steps, once")


def _bench(arguments: argparse.Namespace) -> None:
    # All that can be wrong with the arguments is said before a model is made.
    check_positive(steps=arguments.steps, threads=arguments.threads)
    for batch in arguments.batches:
        check_positive(batches=batch)
    if arguments.json and not Path(arguments.json).parent.is_dir():
        raise ValueError(f"there is no folder {Path(arguments.json).parent} for --json.")
    import torch

    from .. import bundled
    from ..data.atomic import write_json
    from ..evaluation import speed

    # The machine is named first: numbers without it mean nothing.
    source, device = arguments.source or bundled(), check_device(arguments.device)
    ways = check_ways(arguments.ways, source, device, arguments.dtype)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    where = speed.machine(device)
    print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    # Rows are printed as they come: large shapes take minutes.
    quick = arguments.quick
    floor, rows, quality = speed.measure(
        source,
        ways,
        [1] if quick else arguments.batches,
        16 if quick else arguments.steps,
        getattr(torch, arguments.dtype),
        device,
        arguments.guidance_scale,
        1 if quick else 3,
        lambda row: print(f"{row.way} x{row.batch}: {row.milliseconds:.2f} ms", flush=True),
    )
    print(speed.table(floor, rows, quality))
    if arguments.json:
        record = speed.as_record(source, device, floor, rows, quality)
        write_json(Path(arguments.json), record, indent=2)


def check_ways(asked: list[str] | None, source: str, device: str, dtype: str) -> list[str]:
    """The ways to time: those asked for, or all that are quick to start on this device.

    Raises:
        ValueError: an unknown way, or one that this device, dtype or source does not have.
    """
    from ..components.optimization import FORMS, PLAIN, has_bfloat16_products
    from ..evaluation import speed

    # Why a way is not to be had here, by its name.
    missing = {}
    if not device.startswith("cpu"):
        missing |= dict.fromkeys(FORMS, f"is for a CPU, not for {device}")
    if dtype == "bfloat16" and not has_bfloat16_products():
        no_products = "is for float32 on this processor, which has no products of bfloat16"
        missing |= dict.fromkeys(PLAIN, no_products)
    if dtype != "bfloat16":
        missing |= dict.fromkeys(speed.ROUNDED, f"is for bfloat16, not for {dtype}")
    if not speed.is_trained(source):
        missing["parallel"] = "needs a trained pipeline: its saving depends on the weights"
    if asked is None:
        return [way for way in speed.WAYS if way not in missing and way != "compiled"]
    for way in asked:
        if way not in speed.WAYS:
            raise ValueError(f"--ways {way} is unknown; use some of {', '.join(speed.WAYS)}.")
        if way in missing:
            raise ValueError(f"--ways {way} {missing[way]}.")
    return asked
