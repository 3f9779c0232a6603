"""Numbers of the bundled pipeline's card: reconstruction, likelihood, recognisable classes.

    python tests/benchmarks/bundled.py --data zh-plus/tiny-imagenet

What `codeclade evaluate` measures, at several guidance scales; with `--codes` also the likelihoods.
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.data.codes import Codes
from codeclade.evaluation.feature_sets import open_network
from codeclade.evaluation.measure import measure_pipeline
from codeclade.evaluation.reference import open_photographs
from codeclade.evaluation.sampling import SampleParts, Sampling, image_side
from codeclade.training.generator import baselines, validation_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--codes", help="what encode wrote; adds the likelihoods")
    parser.add_argument("--images", type=int, default=64, help="generated images a class")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    arguments = parser.parse_args()
    pipe = CodecladePipeline.from_pretrained(bundled(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    if arguments.codes:
        mapping = pipe.cluster_map.mapping
        loss = validation_loss(pipe.transformer, Codes(f"{arguments.codes}/validation"), mapping)
        found = {"validation_loss": loss, **baselines(Codes(f"{arguments.codes}/train"), mapping)}
        print("generator:", found)
    own = [pipe.config.id2label[str(i)] for i in range(pipe.transformer.config.num_classes)]
    photographs = open_photographs(arguments.data, image_side(pipe), own=own)
    network = open_network("lite0")
    for scale in arguments.scales:
        with tempfile.TemporaryDirectory() as folder:
            sampling = Sampling(arguments.images, guidance_scale=scale)
            parts = SampleParts(Path(folder), pipe, sampling)
            parts.make(32)
            for one in measure_pipeline(pipe, photographs, parts, network).records:
                print(f"{one.metric}: {one.value}{one.unit} ({one.protocol})")


if __name__ == "__main__":
    main()
