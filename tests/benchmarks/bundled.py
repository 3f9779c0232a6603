"""Numbers of the bundled pipelines' cards: reconstruction, likelihood, recognizable classes.

    python tests/benchmarks/bundled.py --out evaluation.json
    python tests/benchmarks/bundled.py --version 0.1 --points 1,1 2,1 3,1 4,1
    python tests/benchmarks/bundled.py --seed 1 --images 16 --networks lite2 --points 3,1 5,0.9

What `codeclade evaluate --data zh-plus/tiny-imagenet --images 64 --features lite2` measures, at
several points of guidance and temperature and by several feature networks; with `--codes` also the
likelihood.
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.data.atomic import write_json
from codeclade.data.codes import Codes
from codeclade.evaluation.feature_sets import open_network
from codeclade.evaluation.measure import measure_pipeline
from codeclade.evaluation.reference import open_photographs
from codeclade.evaluation.sampling import SampleParts, Sampling, class_names_of, image_side
from codeclade.training.generator import baselines, validation_loss


def point(text: str) -> tuple[float, float]:
    """ "5,0.9" as guidance scale and temperature."""
    scale, temperature = map(float, text.split(","))
    return scale, temperature


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", default="", help="of the pipeline: 0.1; default: the newest")
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--name", help="of the data in the records; default: its own")
    parser.add_argument("--codes", help="what encode wrote; adds the likelihood")
    parser.add_argument("--images", type=int, default=64, help="generated images a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--points", type=point, nargs="+", metavar="S,T", help="guidance,temperature; default: own"
    )
    parser.add_argument("--networks", nargs="+", default=["lite2", "lite0"])
    parser.add_argument("--out", help="file for the records of the pipeline's own point")
    arguments = parser.parse_args()
    pipe = CodecladePipeline.from_pretrained(bundled(arguments.version), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    if arguments.codes:
        clusters = pipe.transformer.scheme.predicts_clusters
        mapping = pipe.cluster_map.mapping if clusters else None
        loss = validation_loss(pipe.transformer, Codes(f"{arguments.codes}/validation"), mapping)
        found = {"validation_loss": loss, **baselines(Codes(f"{arguments.codes}/train"), mapping)}
        print("generator:", found)
    photographs = open_photographs(arguments.data, image_side(pipe), own=class_names_of(pipe))
    photographs.data = arguments.name or photographs.data
    networks = [open_network(name) for name in arguments.networks]
    own = pipe.config.guidance_scale, pipe.config.temperature
    for scale, temperature in arguments.points or [own]:
        sampling = Sampling(
            arguments.images, arguments.seed, guidance_scale=scale, temperature=temperature
        )
        records = []
        with tempfile.TemporaryDirectory() as folder:
            parts = SampleParts(Path(folder), pipe, sampling)
            parts.make(32)
            for network in networks:
                found = measure_pipeline(pipe, photographs, parts, network).records
                # What no network measured is the same for all of them.
                new = [one for one in found if not records or "network" in one.conditions]
                records += new
                for one in new:
                    print(f"{one.metric}: {one.value}{one.unit} ({one.protocol})", flush=True)
        if arguments.out and (scale, temperature) == own:
            write_json(arguments.out, [one.to_json() for one in records])


if __name__ == "__main__":
    main()
