"""The command line: verbs, frozen flags, examples, one-sentence errors and exit codes."""

import argparse
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from codeclade import VQModel, bundled
from codeclade.cli import build_parser, main
from codeclade.cli.arguments import load_part

FLAGS = {
    "generate": "--pipeline --out --images --seed --guidance-scale --temperature --top-k --top-p "
    "--scale --device",
    "cluster": "--method --clusters --out --normalize --seed --table --report --report-clusters "
    "--images --num-images --codes",
    "train-tokenizer": "--recipe --out",
    "encode": "--tokenizer --recipe --out",
    "train-generator": "--tokenizer --cluster-map --codes --recipe --out",
    "train-refiner": "--tokenizer --cluster-map --codes --generator --recipe --out",
    "evaluate": "--data --images --seed --guidance-scale --batch-size --out --npz --device",
    "convert": "",
    "push": "--private --create-pr --space --license --message --no-samples --dry-run",
    "demo": "--pipeline --host --port",
}


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("verb", FLAGS)
def test_flags_are_frozen(verb):
    flags = {flag for action in verbs()[verb]._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == set(FLAGS[verb].split())


def test_every_verb_has_an_example():
    for name, parser in verbs().items():
        assert f"codeclade {name}" in parser.format_help(), name


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from codeclade.cli import build_parser; build_parser(); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def fails(capsys, *arguments: str) -> str:
    """The one line an invocation answers bad input with."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    sentences = [line for line in lines if line.startswith(f"codeclade {arguments[0]}: ")]
    assert len(sentences) == 1, lines
    return sentences[0]


def test_generate_writes_an_image_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "golden retriever", "--out", "dog.png", "--seed", "7"]
    assert main([*command, "--guidance-scale", "2"]) == 0
    assert Image.open("dog.png").size == (64, 64)


def test_same_seed_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        main(["generate", "alp", "--out", str(tmp_path / name), "--seed", "3"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_several_images_make_a_sheet(tmp_path):
    out = tmp_path / "sheet.png"
    assert main(["generate", "goldfish", "0", "--images", "3", "--out", str(out)]) == 0
    sheet = Image.open(out)
    assert sheet.width > 3 * 128
    assert sheet.height > 2 * 128


def test_bad_input_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # no retries for names on no Hub
    out = str(tmp_path / "x.png")
    assert "golden retriever" in fails(capsys, "generate", "golden retreiver", "--out", out)
    assert "guidance_scale=-1.0" in fails(
        capsys, "generate", "alp", "--guidance-scale", "-1", "--out", out
    )
    assert "no folder" in fails(capsys, "generate", "alp", "--out", str(tmp_path / "no" / "x.png"))
    assert ".png" in fails(capsys, "generate", "alp", "--out", str(tmp_path / "x.exe"))
    words = fails(capsys, "generate", "alp", "--out", out, "--pipeline", "no/such/folder")
    assert "there is no pipeline folder no/such/folder, and it is no Hub id" in words
    for verb in ("encode", "train-generator"):
        tokenizer = ["--tokenizer", "runs/tokenizr", "--out", out]
        more = ["--codes", out] if verb == "train-generator" else ["data=x", "image_size=64"]
        words = fails(capsys, verb, *tokenizer, *more)
        assert "runs/tokenizr is no folder here, and no repository of the Hub" in words
    assert "0..15" in fails(capsys, "generate", "999", "--out", out)
    assert not (tmp_path / "x.png").exists()


def test_a_part_is_found_in_its_own_folder_and_in_a_pipelines():
    inside = load_part(VQModel, f"{bundled()}/vq_model", "vq_model")
    assert torch.equal(load_part(VQModel, bundled(), "vq_model").codebook, inside.codebook)
    assert load_part(VQModel, None, "vq_model") is None
    with pytest.raises(ValueError, match="no/such/place is no folder here"):
        load_part(VQModel, "no/such/place", "vq_model")


def test_recipe_mistakes_are_named(capsys, tmp_path):
    run = ["--out", str(tmp_path / "run")]
    assert "stepz" in fails(capsys, "train-tokenizer", *run, "data=x", "image_size=64", "stepz=3")
    assert "steps='many'" in fails(
        capsys, "train-tokenizer", *run, "data=x", "image_size=64", "steps=many"
    )
    assert "data" in fails(capsys, "train-tokenizer", *run, "image_size=64")
    assert not (tmp_path / "run").exists()
