"""From photographs to a pipeline and a refiner by the commands alone, of one recipe with sizes."""

import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch
from PIL import Image

from codeclade import CodecladePipeline, Refiner
from codeclade.cli import main

RECIPE = """
about: {title: Toy, summary: A toy.}
sizes:
  s: {}
  l: {generator: {hidden_size: 48, guidance_scale: 1.5}}
tokenizer:
  data: PHOTOS
  image_size: 16
  block_out_channels: [32, 32]
  layers_per_block: 1
  latent_channels: 32
  codebook_size: 16
  codebook_dim: 4
  perceptual_weight: 0.0
  steps: 2
  batch_size: 8
  mixed_precision: no
encode: {data: PHOTOS, image_size: 16, views: 1}
cluster: {method: kmeans, clusters: 8, normalize: true, init: k-means++, n_init: 2}
generator:
  scheme: cluster
  hidden_size: 32
  num_hidden_layers: 1
  num_attention_heads: 2
  intermediate_size: 32
  steps: 4
  batch_size: 8
  mixed_precision: no
  guidance_scale: 3.0
  guidance_schedule: {name: attention, start: 1.75, weight: 0.05}
refiner:
  hidden_size: 32
  num_attention_heads: 2
  intermediate_size: 32
  mask_to_members: yes
  steps: 2
  batch_size: 8
  mixed_precision: no
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe and an image folder of two classes, 20 images each."""
    folder = tmp_path_factory.mktemp("train")
    generator = torch.Generator().manual_seed(0)
    for name in ("blue", "red"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = torch.randint(0, 256, (16, 16, 3), generator=generator).byte()
            Image.fromarray(pixels.numpy()).save(folder / "photos" / name / f"{i}.png")
    (folder / "toy.yaml").write_text(RECIPE.replace("PHOTOS", str(folder / "photos")))
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Every stage of training, in the size "l", with words between the flags."""
    recipe = ["--recipe", f"{folder}/toy.yaml"]
    tokenizer = ["--tokenizer", f"{folder}/tokenizer"]
    codes = ["--codes", f"{folder}/codes", "--cluster-map", f"{folder}/map"]
    for verb, *words in (
        ["train-tokenizer", "steps=3", "--out", f"{folder}/tokenizer", "mixed_precision=no"],
        ["encode", *tokenizer, "classes=", "--out", f"{folder}/codes", "batch_size=4"],
        ["cluster", f"{folder}/tokenizer", "--size", "l", "--out", f"{folder}/map", "n_init=1"],
        ["train-generator", *tokenizer, *codes, "steps=3", "--size", "l", "--out", f"{folder}/run"],
        ["train-refiner", *tokenizer, *codes, "--out", f"{folder}/refined", "steps=2"],
    ):
        assert main([verb, *recipe, *words]) == 0, verb
    return folder


def test_settings_of_file_size_and_command_line_reach_training(runs):
    record = json.loads((runs / "run" / "pipeline" / "training.json").read_text())["recipe"]
    assert (record["steps"], record["hidden_size"], record["num_hidden_layers"]) == (3, 48, 1)
    assert record["mixed_precision"] == "no"
    record = json.loads((runs / "tokenizer" / "vq_model" / "training.json").read_text())["recipe"]
    assert (record["steps"], record["block_out_channels"]) == (3, [32, 32])


def test_the_guidance_schedule_reaches_the_saved_pipeline(runs):
    pipeline = CodecladePipeline.from_pretrained(runs / "run" / "pipeline")
    assert pipeline.config.guidance_schedule == {"name": "attention", "start": 1.75, "weight": 0.05}
    assert pipeline.config.guidance_scale == 1.5
    assert pipeline.cluster_map.config.method == "kmeans-normalized"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red").images[0].size == (16, 16)


def test_the_refiner_is_the_recipes(runs):
    refiner = Refiner.from_pretrained(runs / "refined" / "refiner")
    assert refiner.config.mask_to_members is True and refiner.config.hidden_size == 32


def test_a_refiner_joins_a_pipeline_and_generate_samples_it(runs, tmp_path, capsys):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(runs / "run" / "pipeline", pipeline)
    words = ["train-refiner", "--recipe", f"{runs}/toy.yaml", "--codes", f"{runs}/codes"]
    joining = [*words, "--pipeline", str(pipeline), "--generator", f"{pipeline}/transformer"]
    assert main([*joining, "--out", str(tmp_path / "refined")]) == 0
    assert f"and {pipeline}/refiner" in capsys.readouterr().out
    # Its files are the run's, and the pipeline reads the states of its own generator.
    pipe = CodecladePipeline.from_pretrained(pipeline)
    trained = Refiner.from_pretrained(tmp_path / "refined" / "refiner")
    assert torch.equal(pipe.refiner.head.weight, trained.head.weight)
    assert pipe.refiner.config.context_dim == 48
    assert (pipeline / "refiner" / "training.json").is_file()
    # A second refiner takes its place.
    plain = [*words, "--pipeline", str(pipeline), "--out", str(tmp_path / "plain")]
    assert main([*plain, "sampling_temperature=1.0", "class_dropout=0.1"]) == 0
    pipe = CodecladePipeline.from_pretrained(pipeline)
    assert pipe.refiner.config.context_dim is None

    pipe.set_progress_bar_config(disable=True)
    given = {"temperature": 0.5, "top_k": 2, "guidance_scale": 3.0}
    expected = pipe("red", generator=torch.Generator().manual_seed(4), refiner_settings=given)
    flags = ["--refiner-temperature", "0.5", "--refiner-top-k", "2"]
    flags += ["--refiner-guidance-scale", "3", "--refine", "refiner", "--seed", "4"]
    out = str(tmp_path / "red.png")
    assert main(["generate", "red", "--pipeline", str(pipeline), "--out", out, *flags]) == 0
    assert Image.open(out).tobytes() == expected.images[0].tobytes()


def test_a_refiner_that_cannot_join_is_refused_before_it_is_trained(runs, tmp_path, capsys):
    out, pipeline = tmp_path / "refined", tmp_path / "pipeline"
    shutil.copytree(runs / "run" / "pipeline", pipeline)
    words = ["train-refiner", "--recipe", f"{runs}/toy.yaml", "--codes", f"{runs}/codes"]
    words += ["--out", str(out)]

    def refused(*more: str) -> str:
        assert main([*words, *more]) == 2 and not out.exists()
        return capsys.readouterr().err

    assert "give either --pipeline, or both" in refused()
    both = ["--pipeline", str(pipeline), "--tokenizer", f"{runs}/tokenizer"]
    assert "give either --pipeline, or both" in refused(*both)
    other = ["--pipeline", str(pipeline), "--generator", f"{runs}/run/pipeline"]
    assert "must be --pipeline" in refused(*other)
    index = json.loads((pipeline / "model_index.json").read_text())
    index["id2label"] = {"0": "red", "1": "blue"}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    words += ["--pipeline", str(pipeline)]
    assert "class 0 of the codes is 'blue', which is class 1 of" in refused()
    config = json.loads((pipeline / "transformer" / "config.json").read_text())
    (pipeline / "transformer" / "config.json").write_text(json.dumps(config | {"num_classes": 7}))
    assert "the codes have 2 classes, but" in refused()
    changed = config | {"scheme": "token"}
    (pipeline / "transformer" / "config.json").write_text(json.dumps(changed))
    assert "which predicts ids; a refiner is for" in refused()


def test_the_size_that_was_taken_is_said(runs, capsys, tmp_path):
    words = ["cluster", f"{runs}/tokenizer", "--recipe", f"{runs}/toy.yaml", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert "recipe toy: size s (also l)" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "b"), "--size", "s"]) == 0
    assert "size s" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("guidance_schedule=nonsense", "guidance_schedule 'nonsense' is unknown; use one of"),
        ("guidance_schedule={name: linear, stop: 3}", "has no parameter 'stop'"),
        ("scheme=nonsense", "scheme=nonsense is unknown"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_the_start(runs, capsys, change, message):
    out = runs / "refused"
    words = ["--recipe", f"{runs}/toy.yaml", "--tokenizer", f"{runs}/tokenizer", "--out", str(out)]
    words += ["--codes", f"{runs}/codes", "--cluster-map", f"{runs}/map", "--size", "l", change]
    assert main(["train-generator", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not out.exists()


def generator_words(runs, out) -> list[str]:
    words = ["train-generator", "--tokenizer", f"{runs}/tokenizer", "--codes", f"{runs}/codes"]
    words += ["--cluster-map", f"{runs}/map", "--out", str(out), "hidden_size=32", "batch_size=8"]
    return [*words, "num_hidden_layers=1", "num_attention_heads=2", "mixed_precision=no"]


def test_epochs_stand_for_steps(runs, tmp_path, capsys):
    words = generator_words(runs, tmp_path / "run")
    assert main(words) == 2
    assert "generator needs steps" in capsys.readouterr().err
    assert main([*words, "epochs=0.5", "intermediate_size=32"]) == 0
    record = json.loads((tmp_path / "run" / "pipeline" / "training.json").read_text())
    assert record["steps"] == 3  # half of 38 images, in batches of 8
    printed = capsys.readouterr().err
    assert "38 images, 2 classes" in printed and "0 of 3 done, 0.6 epochs" in printed


def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(runs, tmp_path, capsys):
    out = tmp_path / "run"
    log = out / "log.jsonl"

    def press() -> None:
        while not log.exists() or "loss" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    words = [*generator_words(runs, out), "log_every=1", "save_every=1000000"]
    assert main([*words, "steps=1000000"]) == 130
    found = re.search(r"stopped; step (\d+) is saved; to go on: ", capsys.readouterr().err)
    step = int(found[1])
    assert main([*words, f"steps={step + 1}"]) == 0
    assert f"{step} of {step + 1} done" in capsys.readouterr().err
