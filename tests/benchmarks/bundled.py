"""Numbers of the bundled pipeline's card: reconstruction, likelihood, recognizable classes.

    python tests/benchmarks/bundled.py --data zh-plus/tiny-imagenet --out evaluation.json

What `codeclade evaluate` measures, at several guidance scales and by several feature networks; with
`--codes` also the likelihoods.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--name", help="of the data in the records; default: its own")
    parser.add_argument("--codes", help="what encode wrote; adds the likelihoods")
    parser.add_argument("--images", type=int, default=64, help="generated images a class")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    parser.add_argument("--networks", nargs="+", default=["lite0", "lite2"])
    parser.add_argument("--out", help="file for the records of the pipeline's own scale")
    arguments = parser.parse_args()
    pipe = CodecladePipeline.from_pretrained(bundled(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    if arguments.codes:
        mapping = pipe.cluster_map.mapping
        loss = validation_loss(pipe.transformer, Codes(f"{arguments.codes}/validation"), mapping)
        found = {"validation_loss": loss, **baselines(Codes(f"{arguments.codes}/train"), mapping)}
        print("generator:", found)
    photographs = open_photographs(arguments.data, image_side(pipe), own=class_names_of(pipe))
    photographs.data = arguments.name or photographs.data
    networks = [open_network(name) for name in arguments.networks]
    for scale in arguments.scales:
        records = []
        with tempfile.TemporaryDirectory() as folder:
            parts = SampleParts(
                Path(folder), pipe, Sampling(arguments.images, guidance_scale=scale)
            )
            parts.make(32)
            for network in networks:
                found = measure_pipeline(pipe, photographs, parts, network).records
                # What no network measured is the same for all of them.
                new = [one for one in found if not records or "network" in one.conditions]
                records += new
                for one in new:
                    print(f"{one.metric}: {one.value}{one.unit} ({one.protocol})", flush=True)
        if arguments.out and scale == pipe.config.guidance_scale:
            write_json(arguments.out, [one.to_json() for one in records])


if __name__ == "__main__":
    main()
