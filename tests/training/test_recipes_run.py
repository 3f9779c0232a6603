"""Every recipe trains on tiny data as it is written: sizes, places and lengths alone are others."""

import io
import json
import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from safetensors.torch import save_file

from builders import build_t5, build_tokenizer
from codeclade import CodecladePipeline, CodecladeTextPipeline, Refiner
from codeclade.cli import main
from codeclade.cli.settings import recipe_class
from codeclade.data.families import family_names, read_family
from codeclade.data.recipes import load_recipe
from codeclade.metrics.lpips import Lpips

# What may differ from a recipe, which is for weeks on many devices.
LENGTHS = ["steps=2", "batch_size=4", "workers=0"]
TOKENIZER = ["image_size=32", "block_out_channels=[32, 32, 32, 32]", "layers_per_block=1"]
TOKENIZER += ["latent_channels=32", "codebook_size=32", "discriminator_channels=32"]
DECODER = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=48"]
STAGES = {"tokenizer", "encode", "text", "generator", "refiner"}
SAMPLING = ("guidance_scale", "temperature", "top_k", "top_p", "guidance_schedule")
# "ctf" has all sections; the others take a few seconds each.
FAMILIES = [
    name if name == "ctf" else pytest.param(name, marks=pytest.mark.slow) for name in family_names()
]


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """Folder of random weights in the place of LPIPS's."""
    folder = tmp_path_factory.mktemp("lpips")
    for network in ("alex", "vgg"):
        weights = Lpips(network).weights()
        file = folder / f"{network}.safetensors"
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return folder


def photographs(folder, names) -> str:
    """Three training images and a held-out one of every class, with captions, as parquet."""
    draw = torch.Generator().manual_seed(0)
    kinds = {"image": Image(), "label": ClassLabel(names=list(names)), "text": Value("string")}
    folder.mkdir()
    for split, count in (("train", 3 * len(names)), ("validation", len(names))):
        rows: dict[str, list] = {"image": [], "label": [], "text": []}
        for index in range(count):
            file = io.BytesIO()
            pixels = torch.randint(0, 256, (36, 36, 3), generator=draw).byte()
            Picture.fromarray(pixels.numpy()).save(file, "png")
            rows["image"].append({"bytes": file.getvalue(), "path": None})
            rows["label"].append(index % len(names))
            rows["text"].append("a red dog")
        Dataset.from_dict(rows, Features(kinds)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def check_log(folder) -> None:
    """Every number that a run logged is one."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 2
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_trains_as_it_is_written(name, tmp_path, lpips):
    sections = {*read_family(name).sections}
    written = {key: load_recipe(recipe_class(key), key, name) for key in sections & STAGES}
    data = f"data={photographs(tmp_path / 'photos', written['tokenizer'].classes or ['a', 'b'])}"

    def run(verb: str, *words: str) -> None:
        assert main([verb, "--recipe", name, *words]) == 0, verb

    # The tokenizer, of IAR2 in its two stages, with the discriminator from the first step on.
    tokenizer = ["--tokenizer", str(tmp_path / "tokenizer")]
    settings = [data, *TOKENIZER, *LENGTHS]
    network = written["tokenizer"].perceptual
    if network in ("alex", "vgg"):
        weights = lpips / f"{network}.safetensors"
        settings += [f"perceptual_weights={weights}", "discriminator_start=0"]
    if written["tokenizer"].stage == "semantic":
        first = str(tmp_path / "semantic")
        run("train-tokenizer", "--out", first, *settings, "detail_codebook_size=24")
        check_log(tmp_path / "semantic")
        settings += ["stage=joint", f"init_from={first}", "detail_codebook_size=24"]
    run("train-tokenizer", "--out", tokenizer[1], *settings)
    check_log(tmp_path / "tokenizer")

    # Codes, their captions, their clusters.
    codes, clusters = ["--codes", str(tmp_path / "codes")], []
    words = [data, "image_size=32", "workers=0"]
    words += ["caption_column=text"] if "text" in sections else []
    run("encode", *tokenizer, "--out", codes[1], *words)
    if "text" in sections:
        build_t5().save_pretrained(tmp_path / "t5")
        build_tokenizer().save_pretrained(tmp_path / "t5")
        run("encode-text", *codes, f"text_encoder={tmp_path / 't5'}", "prefix_length=8")
    if "cluster" in sections:
        clusters = ["--cluster-map", str(tmp_path / "map")]
        # Of two codebooks the semantic one.
        table = ["--table", "semantic"] if written["tokenizer"].detail_codebook_size else []
        run("cluster", tokenizer[1], *table, "--out", clusters[1], "clusters=8")

    # The generator, whose pipeline samples as the recipe says.
    generator = tmp_path / "generator"
    parts = [*tokenizer, *codes, *clusters]
    run("train-generator", *parts, "--out", str(generator), *DECODER, *LENGTHS)
    check_log(generator)
    kind = CodecladeTextPipeline if "text" in sections else CodecladePipeline
    pipe = kind.from_pretrained(generator / "pipeline")
    for key in SAMPLING:
        assert pipe.config[key] == getattr(written["generator"], key), key

    # The refiner, in MASC with the generator's states.
    if "refiner" in sections:
        words = [*DECODER, *LENGTHS, "--out", str(tmp_path / "refiner")]
        words += ["--generator", str(generator / "pipeline")] if name == "masc" else []
        run("train-refiner", *parts, *words)
        check_log(tmp_path / "refiner")
        refiner = Refiner.from_pretrained(tmp_path / "refiner" / "refiner")
        for key in ("causal", "mask_to_members", "sampling_temperature", "token_dropout"):
            assert getattr(refiner.config, key) == getattr(written["refiner"], key), key
