"""docs/study.md: its table is that of its runs, and its recipe is one that the commands take."""

import importlib
from pathlib import Path

import pytest

from codeclade.data.recipes import load_recipe
from codeclade.training.encode import EncodeRecipe
from codeclade.training.generator_recipe import GeneratorRecipe
from codeclade.training.refiner import RefinerRecipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(monkeypatch):
    """The script that trains; scripts are no modules of a package."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module("study")


@pytest.fixture
def figures(study):
    """The script that makes tables of its runs."""
    pytest.importorskip("matplotlib")
    return importlib.import_module("study_figures")


def test_the_table_of_the_page_is_that_of_the_runs(study, figures):
    rows = study.read_rows()
    lines = figures.table(figures.summaries(rows))
    assert len(lines) > 4 and "\n".join(lines) in (ROOT / "docs" / "study.md").read_text()
    every = "\n".join(figures.every_run(rows)) + "\n"
    assert len(rows) > 4 and every == (study.STUDY / "runs.md").read_text()


@pytest.mark.parametrize(
    "kind, section",
    [(EncodeRecipe, "encode"), (GeneratorRecipe, "generator"), (RefinerRecipe, "refiner")],
)
def test_commands_take_the_recipe(study, kind, section):
    load_recipe(kind, section, study.RECIPE)


def test_settings_of_every_method_are_those_of_its_network(study):
    for name, way in study.METHODS.items():
        kind, section = (RefinerRecipe, "refiner") if way.after else (GeneratorRecipe, "generator")
        load_recipe(kind, section, study.RECIPE, way.settings)
        assert way.map is None or way.map in study.MAPS, name
        assert way.after is None or study.METHODS[way.after].map == way.map, name


def test_steps_are_read_off_straight_lines(figures):
    curve = [[50, 8.0], [100, 7.0], [150, 7.5], [200, 6.0]]
    assert figures.steps_to(curve, 7.5) == 75
    assert figures.steps_to(curve, 6.5) == pytest.approx(150 + 50 * 2 / 3)
    assert figures.steps_to(curve, 5.0) is None
