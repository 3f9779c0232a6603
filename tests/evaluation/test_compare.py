"""`codeclade compare`: intervals that hold, and records that are not comparable."""

import json

import numpy as np
import pytest

from codeclade.cli import main
from codeclade.data.atomic import write_json
from codeclade.evaluation.compare import bootstrap, compare_measured, read_measured
from codeclade.evaluation.protocol import Protocol, differences


def protocol(**changes) -> dict:
    fields = {"data": "photos", "split": "validation", "data_fingerprint": "ab", "images": 40}
    fields |= {"guidance_scale": 2.0, "dtype": "float32", "machine": "cpu"}
    return Protocol(**(fields | changes)).to_json()


def write(folder, values=None, value=1.0, error=None, metric="PSNR of reconstructions", **changes):
    folder.mkdir()
    row = {"metric": metric, "value": value, "dataset": "photos", "protocol": "p"}
    row |= {"conditions": protocol(**changes)}
    row |= {} if error is None else {"standard_error": error}
    write_json(folder / "evaluation.json", [row])
    if values is not None:
        np.savez(folder / "evaluation-images.npz", **{metric: values})
    return str(folder / "evaluation.json")


def test_a_bootstrap_interval_is_that_of_the_mean():
    random = np.random.default_rng(0)
    values = random.normal(3, 2, size=400)
    low, high = bootstrap(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    # It holds the mean of the distribution in about 95 of 100 cases.
    held = 0
    for seed in range(60):
        low, high = bootstrap(np.random.default_rng(seed + 1).normal(3, 2, size=50))
        held += low < 3 < high
    assert 50 <= held <= 60


def test_the_same_images_are_paired(tmp_path, capsys):
    random = np.random.default_rng(0)
    images = random.normal(20, 5, size=40)
    a = write(tmp_path / "a", images, images.mean())
    b = write(tmp_path / "b", images + random.normal(0.5, 0.1, size=40), images.mean() + 0.5)
    (row,) = compare_measured(read_measured(a), read_measured(b))
    assert row.how == "bootstrap over images, paired"
    assert 0.4 < row.difference[0] < 0.5 < row.difference[1] < 0.6
    c = write(tmp_path / "c", images + 0.5, images.mean() + 0.5, data_fingerprint="cd")
    (row,) = compare_measured(read_measured(a), read_measured(c), ("data_fingerprint",))
    assert row.how == "bootstrap over images" and row.difference[0] < 0 < row.difference[1]
    assert main(["compare", a, b]) == 0
    printed = capsys.readouterr().out
    assert "| PSNR of reconstructions | " in printed and "+0.5 [" in printed


def test_standard_errors_serve_where_no_images_were_kept(tmp_path):
    a = write(tmp_path / "a", value=1.0, error=0.3)
    b = write(tmp_path / "b", value=2.0, error=0.4)
    (row,) = compare_measured(read_measured(a), read_measured(b))
    assert row.difference == pytest.approx((1 - 0.98, 1 + 0.98), abs=1e-3)
    c = write(tmp_path / "c", value=2.0)
    (row,) = compare_measured(read_measured(a), read_measured(c))
    assert row.difference is None and row.intervals[1] is None


def test_other_protocols_are_refused(tmp_path, capsys):
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", guidance_scale=3.0)
    assert main(["compare", a, b]) == 2
    error = capsys.readouterr().err
    assert "measured in different ways: guidance_scale is 2.0 and 3.0" in error
    assert main(["compare", a, b, "--allow", "guidance_scale"]) == 0
    assert main(["compare", a, b, "--allow", "guidance"]) == 2
    assert "--allow guidance is no field of a protocol" in capsys.readouterr().err
    elsewhere = write(tmp_path / "c", machine="H100", versions={"torch": "9"})
    assert main(["compare", a, elsewhere]) == 0
    other = write(tmp_path / "d", metric="KID")
    assert main(["compare", a, other]) == 2
    assert "no metric in common" in capsys.readouterr().err
    rows = json.loads((tmp_path / "d" / "evaluation.json").read_text())
    del rows[0]["conditions"]
    write_json(tmp_path / "d" / "evaluation.json", rows)
    assert main(["compare", other, other]) == 2
    assert "was written before protocols were kept" in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "no.json")]) == 2


def test_every_field_but_circumstances_counts():
    plain = protocol()
    for name, value in (("top_k", 3), ("dtype", "bfloat16"), ("network", "VGG16")):
        assert differences(plain, plain | {name: value}) == [name]
    assert differences(plain, plain | {"machine": "x", "versions": {}}) == []
