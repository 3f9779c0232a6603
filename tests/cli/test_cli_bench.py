"""`codeclade bench`: its table and file, and what it refuses before a model is made."""

import json

import pytest

from builders import build_scheme
from codeclade.cli import main
from codeclade.cli.bench import check_ways
from codeclade.components.optimization import has_bfloat16_products

EAGER_AND_PLAIN = ["eager", "packed", "single"] if has_bfloat16_products() else ["eager"]


@pytest.fixture
def pipeline(tmp_path):
    build_scheme("cluster_token").save_pretrained(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_every_way_is_timed_beside_the_floor(pipeline, tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert main(["bench", pipeline, "--quick", "--device", "cpu", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    ways = [row["way"] for row in found["speeds"]]
    assert ways == [*EAGER_AND_PLAIN, "int8", "int4", "parallel"]
    for row in found["speeds"]:
        assert f"| {row['way']}, bfloat16 | 1 | {row['milliseconds']:.2f} |" in printed
        assert row["images_per_second"] == pytest.approx(1000 / (16 * row["milliseconds"]))
    assert found["floor_milliseconds"] > 0
    assert {"machine", "threads", "torch", "codeclade"} <= found.keys()
    plain, *rounded = found["quality"]
    assert plain["largest_difference"] == 0
    assert [one["way"] for one in rounded] == ["int8", "int4"]
    for one in rounded:
        assert 0 < one["largest_difference"] < 1
        assert one["nats_per_id"] == pytest.approx(plain["nats_per_id"], abs=0.1)


def test_a_shape_has_no_parallel_row():
    assert check_ways(None, "llamagen:b-256", "cpu", "bfloat16") == [
        *EAGER_AND_PLAIN,
        "int8",
        "int4",
    ]
    assert check_ways(None, "llamagen:b-256", "cpu", "float32") == ["eager", "packed", "single"]
    assert check_ways(None, "llamagen:b-256", "cuda", "bfloat16") == ["eager"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ways", "fast"], "--ways fast is unknown; use some of eager, packed"),
        (["--ways", "int8", "--dtype", "float32"], "--ways int8 is for bfloat16, not for float32"),
        (["llamagen:b-256", "--ways", "parallel"], "--ways parallel needs a trained pipeline"),
        (["--batches", "0"], "--batches 0 must be 1 or more"),
        (["nowhere"], "no recipe of that name"),
        (["llamagen:tiny"], "has no size 'tiny'"),
        (["--json", "nowhere/speed.json"], "there is no folder nowhere for --json"),
    ],
)
def test_bad_requests_are_one_sentence(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
