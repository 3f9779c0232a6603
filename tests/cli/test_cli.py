"""The command line: verbs, frozen flags, examples, one-sentence errors and exit codes."""

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from codeclade import VQModel, bundled
from codeclade.cli import build_parser, main
from codeclade.cli.arguments import check_device, import_for_good, load_part
from codeclade.data.sheets import shown_classes

FLAGS = {
    "generate": "--pipeline --out --images --seed --guidance-scale --temperature --top-k --top-p "
    "--refine --refiner-temperature --refiner-top-k --refiner-guidance-scale --scale --device "
    "--max-memory --list --prompt --text-encoder --features --guidance-schedule",
    "recipes": "--out --configs --size --table --settings",
    "cluster": "--method --clusters --out --normalize --no-normalize --seed --table --report "
    "--report-clusters --images --num-images --codes --recipe --size",
    "train-tokenizer": "--recipe --size --out --fetch-lpips",
    "encode": "--tokenizer --recipe --size --out",
    "encode-text": "--codes --recipe --size",
    "train-generator": "--tokenizer --cluster-map --codes --recipe --size --out",
    "train-refiner": "--pipeline --tokenizer --cluster-map --codes --generator --recipe "
    "--size --out",
    "evaluate": "--data --split --features --images --classes --seed --guidance-scale "
    "--guidance-schedule --temperature --top-k --top-p --size --batch-size --out --npz "
    "--parquet --samples-only --likelihood --fetch-lpips --search --search-images "
    "--write-defaults --device "
    "--plain-resize --draws --judge --prompts --clip --text-encoder --quick",
    "compare": "--allow",
    "convert": "",
    "push": "--private --create-pr --space --license --message --no-samples --dry-run",
    "demo": "--pipeline --host --port --text-encoder",
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


def test_an_import_for_good_is_never_collected(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    gc.unfreeze()
    try:
        import_for_good("this")
        assert gc.isenabled() and gc.get_freeze_count() > 100_000
        gc.unfreeze()
        import_for_good("this")  # it is there, and what came since may still be collected
        assert gc.isenabled() and gc.get_freeze_count() == 0
    finally:
        gc.unfreeze()


def test_generate_writes_an_image_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "golden retriever", "--out", "dog.png", "--seed", "7"]
    assert main([*command, "--guidance-scale", "2"]) == 0
    assert Image.open("dog.png").size == (64, 64)


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ("constant", "constant"),
        ("linear:start=2.5", {"name": "linear", "start": 2.5}),
        ("cosine_power:power=1.2", {"name": "cosine_power", "power": 1.2}),
        ("interval:last_step=3", {"name": "interval", "last_step": 3}),
        ("attention:start=1.5/2,weight=4", {"name": "attention", "start": (1.5, 2), "weight": 4}),
    ],
)
def test_every_guidance_schedule_can_be_asked_for(tiny_pipeline, tmp_path, words, schedule):
    pipe = tiny_pipeline("cluster")
    pipe.save_pretrained(tmp_path / "pipe")
    out = str(tmp_path / "x.png")
    command = ["generate", "2", "--pipeline", str(tmp_path / "pipe"), "--seed", "5", "--out", out]
    assert main([*command, "--guidance-scale", "4", "--guidance-schedule", words]) == 0
    own = {"guidance_scale": 4.0, "guidance_schedule": schedule}
    wanted = pipe(2, generator=torch.Generator().manual_seed(5), **own).images[0]
    assert Image.open(out).tobytes() == wanted.tobytes()


def test_same_seed_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        main(["generate", "alp", "--out", str(tmp_path / name), "--seed", "3"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_how_many_images_fit_is_said_first(tmp_path, capsys, caplog):
    out = str(tmp_path / "fish.png")
    command = ["generate", "goldfish", "--images", "3", "--out", out, "--max-memory"]
    assert main([*command, "15MB"]) == 0
    assert "3 images, 2 at once" in caplog.text
    assert "max_memory='much' must be bytes" in fails(capsys, *command, "much")


def test_several_images_make_a_sheet(tmp_path):
    out = tmp_path / "sheet.png"
    assert main(["generate", "goldfish", "0", "--images", "3", "--out", str(out)]) == 0
    sheet = Image.open(out)
    assert sheet.width > 3 * 128
    assert sheet.height > 2 * 128


def test_a_sheet_shows_all_of_a_few_classes_and_says_what_it_leaves_out(
    tiny_pipeline, tmp_path, capsys
):
    few, out = tiny_pipeline("token"), tmp_path / "sheet.png"
    assert shown_classes(12) == list(range(12)) and len(shown_classes(1000)) == 8
    few.save_pretrained(tmp_path / "few")
    assert main(["generate", "--images", "1", "--out", str(out)]) == 0
    assert "8 of 16 classes; --list has all" in capsys.readouterr().out
    command = ["generate", "--images", "1", "--pipeline", str(tmp_path / "few"), "--out", str(out)]
    assert main(command) == 0
    assert "classes" not in capsys.readouterr().out


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
    assert "there is no folder no/such/folder, and it is no Hub id" in words
    for verb in ("encode", "train-generator"):
        tokenizer = ["--tokenizer", "runs/tokenizr", "--out", out]
        given = {"encode": ["data=x", "image_size=64"], "train-generator": ["steps=3"]}
        more = given[verb] + (["--codes", out] if verb == "train-generator" else [])
        words = fails(capsys, verb, *tokenizer, *more)
        assert "runs/tokenizr is no folder here, and no repository of the Hub" in words
    assert "0..15" in fails(capsys, "generate", "999", "--out", out)
    assert not (tmp_path / "x.png").exists()


def test_a_name_that_is_nowhere_is_asked_for_once(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    started = time.monotonic()
    given = ["--tokenizer", "nobody/nothing", "--out", str(tmp_path / "codes"), "data=x"]
    words = fails(capsys, "encode", *given, "image_size=64")
    assert "nobody/nothing is no folder here, and no repository of the Hub" in words
    # The libraries would wait 23 seconds, once for each of four files.
    assert "Retry" not in words and time.monotonic() - started < 20


def test_a_part_is_found_in_its_own_folder_and_in_a_pipelines():
    inside = load_part(VQModel, f"{bundled()}/vq_model", "vq_model")
    assert torch.equal(load_part(VQModel, bundled(), "vq_model").codebook, inside.codebook)
    assert load_part(VQModel, None, "vq_model") is None
    with pytest.raises(ValueError, match="there is no folder no/such/place, and it is no Hub id"):
        load_part(VQModel, "no/such/place", "vq_model")
    with pytest.raises(ValueError, match="holds no refiner"):
        load_part(VQModel, bundled(), "refiner")


def test_recipe_mistakes_are_named(capsys, tmp_path):
    run = ["--out", str(tmp_path / "run")]
    assert "stepz" in fails(capsys, "train-tokenizer", *run, "data=x", "image_size=64", "stepz=3")
    assert "steps='many'" in fails(
        capsys, "train-tokenizer", *run, "data=x", "image_size=64", "steps=many"
    )
    words = fails(capsys, "train-tokenizer", *run, "image_size=64")
    assert (
        "tokenizer needs data, steps; give data=... steps=..., or a recipe with --recipe" in words
    )
    words = fails(capsys, "train-generator", *run, "--tokenizer", "x", "--codes", "y")
    assert "generator needs steps" in words  # 100,000 steps are not begun by accident
    words = fails(
        capsys, "train-generator", *run, "--tokenizer", "x", "--codes", "y", "steps=3", "scheme=foo"
    )
    assert "scheme=foo is unknown; use one of token, cluster," in words
    words = fails(capsys, "train-tokenizer", *run, "--recipe", "masc", "--size", "huge")
    assert "has no size 'huge'; it has b, l, xl" in words
    assert not (tmp_path / "run").exists()


def test_words_stand_anywhere_between_flags(tmp_path):
    parsed = build_parser().parse_args(
        ["train-tokenizer", "a=1", "--out", "run", "b=x y", "--recipe", "r.yaml", "c=", "d==="]
    )
    assert parsed.overrides == ["a=1", "b=x y", "c=", "d==="]
    assert (parsed.out, parsed.recipe, parsed.size) == ("run", "r.yaml", None)
    parsed = build_parser().parse_args(["cluster", "--out", "map", "vq.pt", "--seed", "3", "k=1"])
    assert (parsed.source, parsed.seed, parsed.overrides) == ("vq.pt", 3, ["k=1"])
    parsed = build_parser().parse_args(["generate", "alp", "--seed", "3", "goldfish"])
    assert parsed.labels == ["alp", "goldfish"]
    parsed = build_parser().parse_args(["convert", "llamagen", "--vq", "a", "--out", "b"])
    assert parsed.kind == "llamagen"


@pytest.mark.parametrize("words", [["--out", "a", "--nonsense", "3"], ["--out"], ["a=1"]])
def test_wrong_flags_are_still_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train-tokenizer", *words])
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_describes_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["train-generator", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "learning_rate highest, at the end of the warm-up (float; default 0.0001)" in text
    with pytest.raises(SystemExit):
        main(["cluster", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "clusters number of clusters K (int; needed)" in text
    assert (
        "with method=kmeans: n_init starts; the one of least inertia is kept (int; default 10)"
        in text
    )


def test_classes_are_listed_in_order_of_their_ids(capsys, tmp_path):
    assert main(["generate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(16))
    assert lines[2] == " 2  golden retriever" and lines[10] == "10  lakeside"
    index = json.loads((Path(bundled()) / "model_index.json").read_text()) | {"id2label": {}}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "has no class names" in fails(capsys, "generate", "--list", "--pipeline", str(tmp_path))


def test_a_wrong_folder_gets_a_hint(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "generator" / "pipeline").mkdir(parents=True)
    (tmp_path / "runs" / "generator" / "pipeline" / "model_index.json").write_text("{}")
    for verb in (["generate", "--pipeline"], ["evaluate", "--data", "x"]):
        words = fails(capsys, *verb, "runs/generator")
        assert "is no pipeline" in words and "did you mean runs/generator/pipeline?" in words
        words = fails(capsys, *verb, "runs/generatr")  # could be a Hub id, but there is a runs/
        assert "there is no generatr in the folder runs here" in words


def test_devices_and_counts_are_checked_before_the_work(capsys, tmp_path):
    out = ["--out", str(tmp_path / "x.png")]
    assert "--images 0 must be 1 or more" in fails(capsys, "generate", "alp", "--images", "0", *out)
    assert "--scale 0 must be 1 or more" in fails(capsys, "generate", "alp", "--scale", "0", *out)
    words = fails(capsys, "generate", "alp", "--device", "gpu", *out)
    assert "--device gpu is no device; use cpu, cuda" in words
    words = fails(capsys, "generate", "alp", "--device", "cuda:99", *out)
    assert "--device cuda:99 is not available here" in words
    assert check_device("cpu") == "cpu"
    assert not list(tmp_path.iterdir())


def test_without_a_verb_all_are_listed(capsys):
    assert main([]) == 2
    words = capsys.readouterr().err
    assert all(f"\n    {verb}" in words for verb in verbs()) and "give one of the verbs" in words


def test_python_runs_the_package_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "codeclade", "recipes"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "tiny-imagenet" in result.stdout
