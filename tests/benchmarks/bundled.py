"""Numbers of the bundled pipelines' cards.

    python tests/benchmarks/bundled.py --out evaluation.json
    python tests/benchmarks/bundled.py --version ids --out evaluation-ids.json
    python tests/benchmarks/bundled.py --version 0.1 --out evaluation-0.1.json
    python tests/benchmarks/bundled.py --points 3,1 4,1 5,0.9 --images 16 --seed 1

What `codeclade evaluate --data zh-plus/tiny-imagenet --images 64 --features lite2` measures, by
several feature networks of the same images; with `--codes` also the likelihood. With `--points` a
short table of guidance scales and temperatures, by the first network.
"""

import argparse
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from codeclade import CodecladePipeline, bundled
from codeclade.data.atomic import write_json
from codeclade.data.codes import Codes
from codeclade.data.pixels import to_pixels
from codeclade.evaluation.feature_sets import FeatureSet, open_network, set_distances, share_error
from codeclade.evaluation.measure import measure_pipeline
from codeclade.evaluation.reference import imagenet_indices, open_photographs
from codeclade.evaluation.sampling import SampleParts, Sampling, class_names_of, image_side
from codeclade.evaluation.search import photograph_set
from codeclade.training.generator import baselines, validation_loss


def point(text: str) -> tuple[float, float]:
    """ "5,0.9" as guidance scale and temperature."""
    scale, temperature = map(float, text.split(","))
    return scale, temperature


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", default="", help="ids or 0.1; default: the newest")
    parser.add_argument("--data", default="zh-plus/tiny-imagenet")
    parser.add_argument("--name", help="of the data in the records; default: its own")
    parser.add_argument("--codes", help="what encode wrote; adds the likelihood")
    parser.add_argument("--images", type=int, default=64, help="generated images a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--points", type=point, nargs="+", metavar="S,T", help="guidance,temperature"
    )
    parser.add_argument("--networks", nargs="+", default=["lite2", "lite0"])
    parser.add_argument("--out", help="file for the records")
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
    if arguments.points:
        sweep(pipe, photographs, networks[0], arguments)
        return
    records = []
    for parts in sampled(pipe, Sampling(arguments.images, arguments.seed)):
        for network in networks:
            found = measure_pipeline(pipe, photographs, parts, network).records
            # What no network measured is the same for all of them.
            new = [one for one in found if not records or "network" in one.conditions]
            records += new
            for one in new:
                print(f"{one.metric}: {one.value}{one.unit} ({one.protocol})", flush=True)
    if arguments.out:
        write_json(arguments.out, [one.to_json() for one in records])


def sampled(pipe: CodecladePipeline, sampling: Sampling) -> Iterator[SampleParts]:
    """The images of one sampling, there until the next is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        parts = SampleParts(Path(folder), pipe, sampling)
        parts.make(32)
        yield parts


def sweep(pipe, photographs, network, arguments) -> None:
    """A line of a table for every point."""
    side, classes = image_side(pipe), imagenet_indices(class_names_of(pipe))
    reference = photograph_set(network, photographs, side, 32, classes)
    print(f"{network.name}, {arguments.images} images of every class, seed {arguments.seed}")
    print("| guidance, temperature | class accuracy | FD | KID | precision | recall | coverage |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for scale, temperature in arguments.points:
        given = {"guidance_scale": scale, "temperature": temperature}
        samples = FeatureSet(network, classes)
        for parts in sampled(pipe, Sampling(arguments.images, arguments.seed, **given)):
            for images, labels in parts.batches():
                samples.add(to_pixels(images), labels)
        accuracy = samples.accuracy
        error = share_error(accuracy, samples.count)
        cells = [f"{scale:g}, {temperature:g}", f"{100 * accuracy:.1f} ± {100 * error:.1f} %"]
        found = {one.name.split("-")[0]: one for one in set_distances(samples, reference)}
        for name, digits in (("FD", ".1f"), ("KID", ".4f")):
            value, error = found[name].value, found[name].standard_error
            cells.append(f"{value:{digits}} ± {error:{digits}}")
        cells += [f"{found[name].value:.3f}" for name in ("Precision", "Recall", "Coverage")]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
