"""`codeclade evaluate`: numbers with their protocol, in the file and in the card."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from builders import build_dinov2, build_refiner, build_scheme, build_vq
from codeclade import bundled
from codeclade.cli import main
from codeclade.cli.evaluate import _places
from codeclade.cli.sampling_flags import parse_scale, parse_schedule
from codeclade.data.records import EvaluationRecord
from codeclade.evaluation.compare import compare_measured, read_measured
from codeclade.evaluation.reference import open_photographs
from codeclade.evaluation.resize import eight_bit, resize_words
from codeclade.hub.card import render_card
from codeclade.hub.repository import read_repository
from codeclade.metrics.lpips import Lpips
from codeclade.metrics.networks import state_fingerprint


def records(path) -> dict[str, dict]:
    return {row["metric"]: row for row in json.loads(path.read_text())}


def test_the_command_writes_numbers_that_the_card_shows(saved, photos, tmp_path, capsys):
    samples = tmp_path / "samples.npz"
    arguments = ["evaluate", str(saved), "--data", str(photos), "--images", "2"]
    assert main([*arguments, "--npz", str(samples)]) == 0
    results = records(saved / "evaluation.json")
    lite0 = "EfficientNet-Lite0"
    assert set(results) == {
        "PSNR of reconstructions",
        "SSIM of reconstructions",
        "SSIM of reconstructions, LlamaGen's",
        "Codebook usage",
        "Codebook perplexity",
        f"rFD-{lite0}",
        f"FD-{lite0}",
        f"KID-{lite0}",
        *(f"{name}-{lite0}" for name in ("Precision", "Recall", "Density", "Coverage")),
        f"Inception Score-{lite0}",
        f"Class accuracy-{lite0}",
    }
    assert 3 < results["PSNR of reconstructions"]["value"] < 20
    distance = results[f"FD-{lite0}"]
    assert "20 validation photographs" in distance["protocol"] and "not FID" in distance["protocol"]
    assert distance["floor"] > 0 and distance["dataset"] == "photos"
    floor = f"floor {distance['floor']:.3g}: 10 photographs against the other 10, which being fewer"
    assert floor in distance["protocol"]
    assert "reconstructions may lie below it" in results[f"rFD-{lite0}"]["protocol"]
    conditions = distance["conditions"]
    assert conditions["left_out"] == 5 and conditions["reference_images"] == 20
    assert (
        conditions["images"] == 10
        and conditions["seeds"] == "image i (from 0): seed 0 * 1000003 + i"
    )
    assert conditions["guidance_scale"] == 2 and len(conditions["network_fingerprint"]) == 64
    assert conditions["versions"]["torch"] == torch.__version__
    assert results[f"KID-{lite0}"]["floor"] is not None
    for name in (f"Inception Score-{lite0}", f"Class accuracy-{lite0}", f"rFD-{lite0}"):
        assert results[name]["conditions"]["network"] == lite0
    assert "network" not in results["PSNR of reconstructions"]["conditions"]
    told = results[f"Class accuracy-{lite0}"]["protocol"]
    assert "10 generated images, guidance 2, seed 0" in told and "chance 20.0 %" in told
    with np.load(samples) as file:
        assert file["arr_0"].shape == (10, 16, 16, 3) and file["arr_0"].dtype == np.uint8
    with np.load(saved / "evaluation-images.npz") as file:
        quality = file["PSNR of reconstructions"]
        assert quality.shape == (20,)
        assert quality.mean() == pytest.approx(results["PSNR of reconstructions"]["value"], 1e-4)
        hits, accuracy = file[f"Class accuracy-{lite0}"], results[f"Class accuracy-{lite0}"]
        assert hits.shape == (10,) and hits.mean() == pytest.approx(accuracy["value"])
        deviations = file[f"deviations of rFD-{lite0}"]
        error = results[f"rFD-{lite0}"]["standard_error"]
        assert (deviations**2).mean() ** 0.5 == pytest.approx(error, rel=1e-2)
    printed = capsys.readouterr().out
    assert "photos: 20 photographs (validation), 5 left out" in printed
    assert "LPIPS: not measured" in printed and "--fetch-lpips" in printed
    card = render_card(read_repository(saved), "user/tiny")
    for row in results.values():
        assert row["protocol"] in printed and row["protocol"] in card
    assert str(tmp_path) not in card
    assert not list(saved.glob(".samples-*")) and not list(tmp_path.glob(".samples-*"))


def test_a_tokenizer_alone_is_measured(photos, tmp_path, capsys, monkeypatch):
    build_vq().save_pretrained(tmp_path / "vq")
    torch.manual_seed(0)
    monkeypatch.setenv("CODECLADE_LPIPS", str(tmp_path))
    save_file(Lpips("vgg").weights(), tmp_path / "vgg.safetensors")
    command = ["evaluate", str(tmp_path / "vq"), "--data", str(photos), "--split", "all"]
    assert main(command) == 0
    assert "photos: 25 photographs (all), 0 left out" in capsys.readouterr().out
    results = records(tmp_path / "vq" / "evaluation.json")
    assert results["PSNR of reconstructions"]["conditions"]["images"] == 25
    assert "LPIPS-vgg of reconstructions" in results and "rFD-EfficientNet-Lite0" in results
    assert "over 25 photographs of 16 pixels" in results["PSNR of reconstructions"]["protocol"]
    assert 1 < results["Codebook perplexity"]["value"] <= 32
    assert not any(name.startswith(("FD", "KID")) for name in results)


def test_a_dinov2_may_be_named(photos, tmp_path):
    build_vq().save_pretrained(tmp_path / "vq")
    model = build_dinov2(tmp_path / "dinov2-tiny")
    features = f"dinov2={tmp_path / 'dinov2-tiny'}"
    command = ["evaluate", str(tmp_path / "vq"), "--data", str(photos), "--features", features]
    assert main(command) == 0
    record = records(tmp_path / "vq" / "evaluation.json")["rFD-dinov2-tiny"]
    assert record["conditions"]["network_fingerprint"] == state_fingerprint(model.state_dict())
    assert record["value"] > 0 and record["standard_error"] > 0 and "not FID" in record["protocol"]


@pytest.mark.parametrize("scheme", ["token", "cluster", "cluster_token", "semantic_detail"])
def test_likelihoods_of_every_scheme_are_on_one_axis(scheme, tmp_path, write_codes):
    pipe = build_scheme(scheme)
    pipe.save_pretrained(tmp_path / "pipe")
    codes = write_codes(tmp_path / "codes", pipe.vq_model, scheme == "semantic_detail")
    command = ["evaluate", str(tmp_path / "pipe"), "--likelihood", str(codes.folder)]
    assert main(command) == 0
    results = records(tmp_path / "pipe" / "evaluation.json")
    names = [f"Nats per cluster, K = N/{size}" for size in (2, 4, 8, 16)]
    if scheme == "semantic_detail":
        assert set(results) == {"Nats per pair", "Nats per semantic code", "Nats per detail code"}
        return
    assert set(results) == {"Nats per id", *names}
    values = [results[name]["value"] for name in ("Nats per id", *names)]
    assert values == sorted(values, reverse=True)
    assert all(results[name]["standard_error"] > 0 for name in results)
    assert "cut of the masc tree" in results[names[0]]["conditions"]["estimator"]


def test_a_refiner_does_not_keep_nats_per_id_from_being_compared(tmp_path, write_codes):
    for name, refiner in (("plain", None), ("refined", build_refiner())):
        build_scheme("cluster", refiner=refiner).save_pretrained(tmp_path / name)
    codes = write_codes(tmp_path / "codes", build_scheme("cluster").vq_model, False)
    for name in ("plain", "refined"):
        assert main(["evaluate", str(tmp_path / name), "--likelihood", str(codes.folder)]) == 0
    found = [read_measured(tmp_path / name / "evaluation.json") for name in ("plain", "refined")]
    rows = {row.metric: row for row in compare_measured(*found)}
    assert rows["Nats per id"].difference == (0, 0)
    added = set(found[1].records) - set(found[0].records)
    assert added == {"Nats per id by the refiner"}
    assert "by the refiner" in found[1].records[added.pop()].conditions["estimator"]


def test_codes_that_cannot_be_scored_are_refused_in_one_sentence(tmp_path, write_codes, capsys):
    pairs, single = build_scheme("semantic_detail"), build_scheme("token")
    pairs.save_pretrained(tmp_path / "pairs")
    # Of a tokenizer with the same codebook and no second one.
    (tmp_path / "codes").mkdir()
    write_codes(tmp_path / "codes" / "validation", single.vq_model, False)
    command = ["evaluate", str(tmp_path / "pairs"), "--likelihood"]
    assert main([*command, str(tmp_path / "codes" / "validation")]) == 2
    assert "made by another tokenizer" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "codes")]) == 2
    assert f"give {tmp_path / 'codes' / 'validation'}." in capsys.readouterr().err


def test_samples_alone_need_no_photographs(saved, tmp_path, capsys):
    out = tmp_path / "s.npz"
    command = ["evaluate", str(saved), "--images", "2", "--size", "8", "--classes", "random"]
    assert main([*command, "--samples-only", "--npz", str(out)]) == 0
    with np.load(out) as file:
        smooth = file["arr_0"]
    assert smooth.shape == (10, 8, 8, 3)
    assert not (saved / "evaluation.json").exists()
    # Without antialiasing, as LlamaGen's script makes 256 of 384 pixels.
    assert main([*command, "--samples-only", "--npz", str(out), "--plain-resize"]) == 0
    with np.load(out) as file:
        plain = file["arr_0"]
    assert plain.shape == (10, 8, 8, 3) and not np.array_equal(plain, smooth)
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 4 - 2
    expected = torch.nn.functional.interpolate(pixels, size=(8, 8), mode="bicubic")
    expected = torch.clamp(127.5 * expected + 128.0, 0, 255).byte()  # their rounding
    assert torch.equal(eight_bit(pixels, 8, plain=True), expected)
    assert "not antialiased" in resize_words(12, 8, plain=True)
    assert main([*command[:4], "--samples-only", "--npz", str(out), "--plain-resize"]) == 2
    assert "--plain-resize needs --size" in capsys.readouterr().err


def test_old_records_are_read():
    old = {"metric": "KID", "value": 0.1, "dataset": "d", "protocol": "p"}
    record = EvaluationRecord.from_json(old, "e.json")
    assert record.conditions is None and record.standard_error is None
    wrong = old | {"conditions": "p"}
    with pytest.raises(ValueError, match="conditions must be an object"):
        EvaluationRecord.from_json(wrong, "e.json")


def test_scales_and_schedules_are_read_from_text():
    assert (
        parse_scale("2.5") == 2.5 and parse_scale("1,3") == (1.0, 3.0) and parse_scale(None) is None
    )
    assert parse_schedule("linear") == "linear"
    found = parse_schedule("attention:start=1.75,weight=0.1")
    assert found == {"name": "attention", "start": 1.75, "weight": 0.1}
    pair = parse_schedule("attention:start=1.75/2,weight=0.1")  # a start for each stage
    assert pair == {"name": "attention", "start": [1.75, 2.0], "weight": 0.1}
    with pytest.raises(ValueError, match="must be key=number"):
        parse_schedule("interval:last_step")
    with pytest.raises(ValueError, match="--guidance-scale a must be a number"):
        parse_scale("a")


def test_numbers_that_came_with_the_package_stay(saved):
    given = {"out": None, "npz": None, "parquet": None, "quick": False}
    assert _places(Namespace(source=bundled(), **given))[0] == Path("evaluation.json")
    assert _places(Namespace(source=str(saved), **given))[0] == saved / "evaluation.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--images", "0"], "--images 0 must be 1 or more"),
        (["--out", "no/where.json"], "there is no folder no for where.json"),
        (["--data", "no/such/data"], "no/such/data"),
        (["--split", "dev"], "has no split 'dev'; it has train, validation, all"),
        (["--features", "lite1"], "--features lite1 is unknown; use lite0, lite2"),
        (["--features", "inception=no.pth"], "there is no file no.pth"),
        (["--features", "dinov2=no/such/folder"], "no/such/folder is no folder here and no Hub id"),
        (["--classes", "all"], "--classes all must be one of balanced, random"),
        (["--samples-only"], "--samples-only needs --npz"),
        (["--temperature", "-1"], "temperature=-1.0 must be 0"),
        (["--guidance-schedule", "wavy"], "guidance_schedule 'wavy' is unknown"),
        (["--likelihood", "x", "--images", "3"], "--images is of generated images"),
    ],
)
def test_bad_input_is_one_sentence(saved, photos, capsys, change, words):
    assert main(["evaluate", str(saved), "--data", str(photos), *change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("codeclade evaluate: ") and words in error
    assert not (saved / "evaluation.json").exists()


def test_data_of_other_classes_is_refused(saved, photos, capsys):
    (photos / "validation" / "lion").rename(photos / "validation" / "liger")
    (photos / "train" / "lion").rename(photos / "train" / "liger")
    assert main(["evaluate", str(saved), "--data", str(photos)]) == 2
    assert "the data has no class 'lion'" in capsys.readouterr().err


def test_a_first_look_is_small_and_never_an_evaluation(saved, photos, tmp_path, capsys):
    command = ["evaluate", str(saved), "--data", str(photos)]
    assert main([*command, "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "reconstruct  20 photographs at 16 pixels: PSNR, SSIM\n" in printed
    assert "generate     64 images of 5 classes at 16 pixels: KID by Effi" in printed
    assert "evaluation-quick.json (a first look, no evaluation)" in printed
    found = records(saved / "evaluation-quick.json")
    lite0 = "EfficientNet-Lite0"
    psnr, ssim = "PSNR of reconstructions", "SSIM of reconstructions"
    assert set(found) == {
        psnr, ssim, f"{ssim}, LlamaGen's", f"KID-{lite0}", f"Class accuracy-{lite0}",
    }  # fmt: skip
    assert all(row["conditions"]["quick"] is True for row in found.values())
    assert not (saved / "evaluation.json").exists()

    # Neither a comparison nor a card takes it for a whole evaluation.
    repository = read_repository(saved)
    assert not repository.evaluation and "evaluation-quick.json" not in repository.files
    whole = json.loads((saved / "evaluation-quick.json").read_text())
    for row in whole:
        del row["conditions"]["quick"]
    (saved / "evaluation.json").write_text(json.dumps(whole))
    both = [str(saved / "evaluation-quick.json"), str(saved / "evaluation.json")]
    capsys.readouterr()
    assert main(["compare", *both, "--allow", "quick", "images", "split"]) == 2
    assert "evaluation-quick.json is a first look (--quick)" in capsys.readouterr().err
    assert main(["compare", both[0], both[0]]) == 0
    (saved / "evaluation-quick.json").replace(saved / "evaluation.json")
    with pytest.raises(ValueError, match="holds a first look"):
        read_repository(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--images", "3"], "--images does not go with --quick"),
        (["--search", "top_k=0,10"], "--search does not go with --quick"),
        (["--out", "evaluation.json"], "give a first look another name"),
    ],
)
def test_what_a_first_look_does_not_take(saved, photos, capsys, change, words):
    assert main(["evaluate", str(saved), "--data", str(photos), "--quick", *change]) == 2
    assert words in capsys.readouterr().err


def test_few_photographs_are_spread_over_the_classes(photos):
    few = open_photographs(str(photos), 16).few(5)
    assert few.images.labels.tolist() == [0, 1, 2, 3, 4] and few.left_out == 20
    assert open_photographs(str(photos), 16).few(20).left_out == 5


def test_a_folder_of_training_is_its_tokenizer(photos, tmp_path, capsys):
    build_vq().save_pretrained(tmp_path / "run" / "vq_model")
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(photos), "--quick"]) == 0
    found = records(tmp_path / "run" / "vq_model" / "evaluation-quick.json")
    assert "PSNR of reconstructions" in found and not any("KID" in name for name in found)
