"""`codeclade compare`: intervals that hold, and records that are not comparable."""

import json

import numpy as np
import pytest

from codeclade.cli import main
from codeclade.data.atomic import write_json
from codeclade.evaluation.compare import bootstrap, compare_measured, read_measured, wilson
from codeclade.evaluation.protocol import Protocol, differences


def protocol(**changes) -> dict:
    fields = {"data": "photos", "split": "validation", "data_fingerprint": "ab", "images": 40}
    fields |= {"guidance_scale": 2.0, "dtype": "float32", "machine": "cpu"}
    return Protocol(**(fields | changes)).to_json()


def write(folder, values=None, value=1.0, error=None, metric="PSNR of reconstructions",
          deviations=None, unit=None, **changes):  # fmt: skip
    folder.mkdir()
    row = {"metric": metric, "value": value, "dataset": "photos", "protocol": "p"}
    row |= {} if unit is None else {"unit": unit}
    row |= {"conditions": protocol(**changes)}
    row |= {} if error is None else {"standard_error": error}
    write_json(folder / "evaluation.json", [row])
    if values is not None:
        np.savez(folder / "evaluation-images.npz", **{metric: values})
    if deviations is not None:
        np.savez(folder / "evaluation-images.npz", **{f"deviations of {metric}": deviations})
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


def test_what_one_file_has_alone_is_named(tmp_path, capsys):
    a = write(tmp_path / "a", error=0.1)
    b = write(tmp_path / "b", error=0.1)
    more = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    write_json(tmp_path / "b" / "evaluation.json", [*more, more[0] | {"metric": "FD-Lite2"}])
    assert main(["compare", a, b]) == 0
    assert f"in {b} alone: FD-Lite2" in capsys.readouterr().out
    assert main(["compare", a, a]) == 0
    assert " alone: " not in capsys.readouterr().out


def test_standard_errors_serve_where_no_images_were_kept(tmp_path):
    a = write(tmp_path / "a", value=1.0, error=0.3)
    b = write(tmp_path / "b", value=2.0, error=0.4)
    (row,) = compare_measured(read_measured(a), read_measured(b))
    assert row.difference == pytest.approx((1 - 0.98, 1 + 0.98), abs=1e-3)
    c = write(tmp_path / "c", value=2.0)
    (row,) = compare_measured(read_measured(a), read_measured(c))
    assert row.difference is None and row.intervals[1] is None


def test_what_two_sets_owe_to_the_same_photographs_cancels(tmp_path):
    shared, own = np.random.default_rng(0).normal(0, [[0.3], [0.01]], size=(2, 10))
    error = float(np.square(shared).mean() ** 0.5)
    given = {"metric": "rFD-Lite", "error": error}
    a = write(tmp_path / "a", value=60.0, deviations=shared, **given)
    b = write(tmp_path / "b", value=60.1, deviations=shared + own, **given)
    (row,) = compare_measured(read_measured(a), read_measured(b))
    assert row.how == "without parts of the images, paired"
    assert row.difference == pytest.approx(
        [0.1 + sign * 1.96 * np.square(own).mean() ** 0.5 for sign in (-1, 1)], abs=1e-4
    )
    (row,) = compare_measured(read_measured(a), read_measured(a))
    assert row.difference == (0, 0)
    # Of other photographs nothing cancels; the same where deviations were not kept.
    c = write(tmp_path / "c", value=60.1, deviations=shared, data_fingerprint="cd", **given)
    (row,) = compare_measured(read_measured(a), read_measured(c), ("data_fingerprint",))
    assert row.how == "standard errors, as if independent"
    d = write(tmp_path / "d", value=60.1, **given)
    (other,) = compare_measured(read_measured(a), read_measured(d))
    assert other.how == row.how and other.difference == pytest.approx(row.difference)


@pytest.mark.parametrize(
    ("metric", "unit", "value", "error", "limits"),
    [
        ("Precision-Lite", None, 0.97, 0.04, (0.8916, 1)),
        ("Recall-Lite", None, 0.0025, 0.005, (0, 0.0123)),
        ("Density-Lite", None, 0.1, 0.2, (0, 0.492)),
        ("Codebook usage", " %", 99.0, 1.0, (97.04, 100)),
        ("KID-Lite", None, 0.0001, 0.001, (-0.00186, 0.00206)),
    ],
)
def test_no_interval_passes_what_a_value_can_be(metric, unit, value, error, limits, tmp_path):
    a = write(tmp_path / "a", value=value, error=error, metric=metric, unit=unit)
    (row,) = compare_measured(read_measured(a), read_measured(a))
    assert row.intervals[0] == pytest.approx(limits, abs=1e-4)


def test_accuracy_has_the_interval_of_a_share(tmp_path):
    # 10 of 10 images: resampling would say 100 % for certain. R: binom::binom.wilson(10, 10)
    assert wilson(np.full(10, 100.0)) == pytest.approx((72.247, 100), abs=1e-3)
    hits = np.repeat([0.0, 100.0], [3, 7])
    a = write(tmp_path / "a", hits, 70.0, 14.0, metric="Class accuracy-Lite", unit=" %")
    (row,) = compare_measured(read_measured(a), read_measured(a))
    assert row.intervals[0] == pytest.approx((39.678, 89.221), abs=1e-3)
    assert row.difference == (0, 0)


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
