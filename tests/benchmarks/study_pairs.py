"""IAR2's pairs in the study: two codebooks of 4,096 codes each, measured by their pictures.

    python tests/benchmarks/study_pairs.py prepare --data DIR --out runs/study
    python tests/benchmarks/study_pairs.py run pairs --out runs/study
    python tests/benchmarks/study_pairs.py measure --data DIR --out runs/study

`prepare` gives the study's tokenizer a second codebook, trains both on, and encodes; `run` trains
the study's generator on the pairs; `measure` writes docs/study/pairs.json: pictures as in
study_images.py, and what the two tokenizers keep of the photographs. Nats of pairs are not those of
ids, so the rows are not in runs.json.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from study import RECIPE, ROOT, STUDY, centers, command, fewer_codes, machine, tokenizer
from study_images import judged, pictures

RESULTS = STUDY / "pairs.json"
DETAILS = 4096
RATE = "1e-3"
METHODS = {"pairs": "none", "pairs-prior-context": "context"}  # embedding_prior of the generator
# Both codebooks and the networks learn on, for half an hour of one thread.
TOKENIZER = (
    f"detail_codebook_size={DETAILS}", "codebook_update=ema", "semantic_every=1", "steps=1200",
    "commitment_weight=0.1", "perceptual_weight=0.2", "classifier_weight=0.02",
    "discriminator_weight=0", "learning_rate=6e-4", "final_learning_rate=1e-4",
)  # fmt: skip


def prepare(data: str, out: Path) -> None:
    """The tokenizer of pairs, codes of all images, codes of the images to measure."""
    start, run, codes = (out / f"pair-{name}" for name in ("start", "tokenizer", "codes"))
    if not start.exists():
        with_details(data, start)
    if not (run / "vq_model").exists():
        words = ("--recipe", "tiny-imagenet", "--fetch-lpips", "--out", run, f"data={data}")
        command("train-tokenizer", *words, f"init_from={start}", *TOKENIZER)
    if not (codes / "validation" / "codes.json").exists():
        words = ("--recipe", RECIPE, "--tokenizer", run / "vq_model", "--out", codes)
        command("encode", *words, f"data={data}")
    fewer_codes(codes, out / "pair-curve-codes")


def with_details(data: str, folder: Path) -> None:
    """The study's tokenizer, and as details k-means centers of what its codes leave of latents."""
    from codeclade.components.vq_model import VQModel

    model = VQModel.from_pretrained(tokenizer())

    def rest(pixels: torch.Tensor) -> torch.Tensor:
        ids, latents = model.encode(pixels)
        return F.normalize(latents, dim=1) - model.quantize.lookup(ids)

    details = centers(data, 2800, DETAILS, rest)
    pairs = VQModel.from_config({**model.config, "detail_codebook_size": DETAILS})
    pairs.load_state_dict({**model.state_dict(), "quantize.detail": details})
    pairs.save_pretrained(folder)


def run(method: str, out: Path) -> None:
    """Train the study's generator on pairs."""
    words = ["--recipe", RECIPE, "--tokenizer", out / "pair-tokenizer" / "vq_model"]
    words += ["--codes", out / "pair-curve-codes", "--out", out / "runs" / f"{method}-{RATE}-0"]
    words += [f"embedding_prior={METHODS[method]}", f"learning_rate={RATE}"]
    command("train-generator", *words, f"final_learning_rate={RATE}", "seed=0")


def measure(data: str, out: Path) -> None:
    """Write RESULTS: the tokenizers, then every method whose run is there."""
    from codeclade.components.pipeline import CodecladePipeline
    from codeclade.components.vq_model import VQModel
    from codeclade.data.atomic import write_json
    from codeclade.evaluation.sampling import class_names_of

    torch.set_num_threads(1)
    rows, photographs, images = [], None, None
    for method in METHODS:
        folder = out / "runs" / f"{method}-{RATE}-0"
        if not (folder / "pipeline").exists():
            continue
        pipe = CodecladePipeline.from_pretrained(folder / "pipeline", dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        if photographs is None:
            photographs, images = judged(data, class_names_of(pipe))
            one = VQModel.from_pretrained(tokenizer(), torch_dtype=torch.float32)
            for name, model in (("bundled", one), ("pairs", pipe.vq_model)):
                rows.append({"tokenizer": name, **kept(model, images, photographs)})
                print(json.dumps(rows[-1]), flush=True)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        curve = [[r["step"], r["validation_loss"]] for r in log if "validation_loss" in r]
        row = {"method": method, "learning_rate": RATE, "seed": 0, "nats_per_pair": curve[-1][1]}
        row |= {"curve": curve, **pictures(pipe, photographs), "machine": machine()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_json(RESULTS, rows)


@torch.no_grad()
def kept(vq_model, images, photographs) -> dict:
    """What a tokenizer keeps of the photographs that are judged."""
    from codeclade.data.pixels import to_pixels, to_uint8
    from codeclade.evaluation.feature_sets import FeatureSet, set_distances
    from codeclade.metrics.image_quality import psnr

    found, decibels = FeatureSet(photographs.network, photographs.classes), []
    for some in torch.arange(len(images)).split(50):
        pixels = to_pixels(torch.cat([images.views(i, [None]) for i in some.tolist()]))
        made = to_pixels(to_uint8(vq_model(pixels)))
        decibels += psnr(made, pixels).tolist()
        found.add(made, images.labels[some])
    values = {one.name: one.value for one in set_distances(found, photographs)}
    return {
        "PSNR": round(sum(decibels) / len(decibels), 3),
        "FD": round(values[photographs.network.distance_name], 3),
        "accuracy": round(found.accuracy, 4),
        "photographs": photographs.accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "run", "measure"):
        one = verbs.add_parser(verb)
        one.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
        if verb == "run":
            one.add_argument("method", choices=METHODS)
        else:
            one.add_argument("--data", default="zh-plus/tiny-imagenet", help="folder or Hub id")
    arguments = parser.parse_args()
    if arguments.verb == "prepare":
        prepare(arguments.data, arguments.out)
    elif arguments.verb == "run":
        run(arguments.method, arguments.out)
    else:
        measure(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
