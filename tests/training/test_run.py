"""Recipes from files and overrides."""

from dataclasses import dataclass, field

import pytest

from codeclade.training.run import load_recipe


@dataclass
class Recipe:
    data: str
    steps: int = 10
    rate: float = 1e-3
    classes: list = field(default_factory=list)
    flip: bool = True


YAML = """
toy:
  data: photos
  steps: 20
  rate: 1e-4  # YAML reads this as a string
  classes: [apple, boat]
other:
  data: elsewhere
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    return path


def test_a_recipe_is_its_section_of_the_file(recipe_file):
    recipe = load_recipe(Recipe, "toy", recipe_file, [])
    assert recipe == Recipe("photos", 20, 1e-4, ["apple", "boat"], True)
    assert load_recipe(Recipe, "other", recipe_file, []) == Recipe("elsewhere")


def test_overrides_win_and_need_no_file(recipe_file):
    overrides = ["steps=7", "rate=2", "classes=[cloud]", "flip=false", "data=a=b"]
    expected = Recipe("a=b", 7, 2.0, ["cloud"], False)
    for path in (recipe_file, None):
        recipe = load_recipe(Recipe, "toy", path, overrides)
        assert recipe == expected
        assert isinstance(recipe.rate, float)


def test_an_empty_or_absent_section_leaves_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text in ("", "other:\n  steps: 3\n", "toy:\n", "toy: {}\n"):
        path.write_text(text)
        assert load_recipe(Recipe, "toy", path, ["data=photos"]) == Recipe("photos")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3"], "toy has no setting 'stepz'; it has data, steps, rate, classes, flip"),
        (["steps=many"], "toy setting steps='many' must be of type int"),
        (["steps=1.5"], "steps=1.5 must be of type int"),
        (["steps=true"], "steps=True must be of type int"),
        (["rate=fast"], "rate='fast' must be of type float"),
        (["rate=true"], "rate=True must be of type float"),
        (["rate=null"], "rate=None must be of type float"),
        (["classes=apple"], "classes='apple' must be of type list"),
        (["flip=1"], "flip=1 must be of type bool"),
        (["data=3"], "data=3 must be of type str"),
        (["steps"], "override 'steps' is not of the form key=value"),
    ],
)
def test_wrong_settings_are_refused(recipe_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(Recipe, "toy", recipe_file, overrides)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match=r"toy recipe is incomplete: .*'data'"):
        load_recipe(Recipe, "toy", None, ["steps=3"])
