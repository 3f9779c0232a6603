"""Search over sampling settings: the grid, the nearest point, its confirmation, its plot."""

import json

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from codeclade import CodecladePipeline
from codeclade.cli import main
from codeclade.cli.evaluate_flags import search_points
from codeclade.evaluation.reference import open_photographs
from codeclade.evaluation.sampling import Sampling
from codeclade.evaluation.search import Trial, nearest, number_values, plot, search
from evaluation.colors import Colors

CLASSES = ("goldfish", "tabby", "golden retriever", "lion", "alp")  # of the photographs


def test_a_grid_has_all_combinations():
    words = ["guidance_scale=1.0:2.0:0.5", "temperature=0.9,1.0", "guidance_schedule=linear"]
    found = search_points([*words, "guidance_schedule=attention:start=1.75,weight=0.1"])
    assert len(found) == 3 * 2 * 2
    assert found[0] == {"guidance_scale": 1.0, "temperature": 0.9, "guidance_schedule": "linear"}
    other = {"name": "attention", "start": 1.75, "weight": 0.1}
    assert found[-1] == {"guidance_scale": 2.0, "temperature": 1.0, "guidance_schedule": other}
    assert number_values("guidance_scale", "1:4:0.25")[-1] == 4.0
    assert number_values("top_k", "0,100") == [0, 100]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("scale=1", "must be key=values, with a key of guidance_scale, temperature"),
        ("top_p=a", "must be numbers with commas, or first:last:step"),
        ("guidance_scale=1:0:0.1", "must be numbers with commas, or first:last:step"),
        ("guidance_scale=1:2:0", "must be numbers with commas, or first:last:step"),
        ("guidance_scale=1:9:0.001", "at most 1000"),
    ],
)
def test_a_wrong_grid_is_refused(word, words):
    with pytest.raises(ValueError, match=words):
        search_points([word])


def test_a_plot_has_a_line_for_every_other_setting():
    trials = [Trial({"guidance_scale": s, "top_k": k}, s + k) for k in (0, 5) for s in (1.0, 2.0)]
    (axes,) = plot(trials, "FD").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["top_k 0", "top_k 5", "nearest"]
    assert axes.lines[-1].get_xydata().tolist() == [[1.0, 1.0]]


def test_points_that_cannot_be_told_apart_are_named():
    own = [torch.tensor(x) for x in ([0.3, -0.3], [-0.1, 0.1], [0.2, -0.2])]
    trials = [Trial({"top_k": k}, 10.0 + 0.5 * k, x) for k, x in enumerate(own)]
    trials += [Trial({"top_k": 3}, 10.1)]
    best, alike = nearest(trials)
    # In pairs 0.5 < 2 * 0.4, but 1.0 > 2 * 0.1 in spite of the larger errors; the last has none.
    assert best is trials[0] and alike == [trials[1]]
    assert [trial.error for trial in trials] == [*map(pytest.approx, (0.3, 0.1, 0.2)), None]


def test_every_point_is_compared_with_the_photographs(tiny_pipeline, photos, tmp_path):
    pipe = tiny_pipeline("cluster", id2label=dict(enumerate(CLASSES)))
    points = search_points(["temperature=0,1", "guidance_scale=1,3"])
    given = points, tmp_path, 4, PartialState(), open_photographs(str(photos), 16), Colors()
    trials = search(pipe, Sampling(count=1, seed=5), *given)
    assert [trial.settings for trial in trials] == points
    assert len({trial.distance for trial in trials}) == 4 and all(t.distance > 0 for t in trials)
    assert all(trial.error is None for trial in trials), "5 images are too few for errors"
    assert trials == search(pipe, Sampling(count=1, seed=5), *given)
    assert all(t.error > 0 for t in search(pipe, Sampling(count=4, seed=5), *given))
    assert not list(tmp_path.glob(".samples-*")), "samples are judged and deleted"


@pytest.mark.slow  # EfficientNet on every set; its features and those of other networks are tested
def test_the_nearest_point_is_confirmed_and_written(saved, photos, capsys):
    command = ["evaluate", str(saved), "--data", str(photos), "--images", "2"]
    command += ["--search", "guidance_scale=1,3", "--search-images", "1", "--write-defaults"]
    assert main(command) == 0
    trials = json.loads((saved / "search.json").read_text())
    assert [row["guidance_scale"] for row in trials] == [1.0, 3.0]
    best = min(trials, key=lambda row: row["FD-EfficientNet-Lite0"])["guidance_scale"]
    record = json.loads((saved / "evaluation.json").read_text())[-1]
    assert record["conditions"]["guidance_scale"] == best
    assert record["conditions"]["seeds"].startswith("image i (from 0): seed 1 *")
    assert record["conditions"]["images"] == 10  # the full count
    assert CodecladePipeline.load_config(saved)["guidance_scale"] == best
    with Image.open(saved / "search.png") as picture:
        assert picture.width > 400
    assert "nearest" in capsys.readouterr().out
    assert main([*command[:6], "--write-defaults"]) == 2
    assert "need --search" in capsys.readouterr().err
