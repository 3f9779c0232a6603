"""Recipes: settings typed by their fields, from sections, sizes and `key=value`."""

from dataclasses import dataclass, field

import pytest

from codeclade.data.families import family_names, read_family
from codeclade.data.recipes import load_recipe, settings


@dataclass
class Recipe:
    data: str  # where from
    steps: int = 10
    rate: float = 1e-3  # per step
    classes: list | dict = field(default_factory=list)
    flip: bool = True
    precision: str = "bf16"  # no, fp16, bf16
    schedule: str | dict | None = None


YAML = """
toy:
  data: photos
  steps: 20
  rate: 1e-4  # YAML reads this as a string
  classes: [apple, boat]
  precision: no  # and this as false
other:
  data: elsewhere
"""

SIZED = """
about: {title: Toy, summary: A toy.}
default_size: m
sizes:
  s: {toy: {steps: 3, precision: no}}
  m:
    toy: {steps: 5}
  3b: {}
toy:
  data: photos
  steps: 20
  classes: {a: apple}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture
def sized_file(tmp_path):
    path = tmp_path / "sized.yaml"
    path.write_text(SIZED)
    return path


def test_a_recipe_is_its_section_of_the_file(recipe_file):
    recipe = load_recipe(Recipe, "toy", recipe_file)
    assert recipe == Recipe("photos", 20, 1e-4, ["apple", "boat"], True, "no")
    assert load_recipe(Recipe, "other", recipe_file) == Recipe("elsewhere")


def test_overrides_win_and_need_no_file(recipe_file):
    overrides = ["steps=7", "rate=2", "classes=[cloud]", "flip=false", "data=a=b", "precision=no"]
    expected = Recipe("a=b", 7, 2.0, ["cloud"], False, "no")
    for path in (recipe_file, None):
        recipe = load_recipe(Recipe, "toy", path, overrides)
        assert recipe == expected
        assert isinstance(recipe.rate, float)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("precision=no", "precision", "no"),
        ("precision=off", "precision", "off"),
        ("data=3", "data", "3"),
        ("data=", "data", ""),
        ("rate=1e-5", "rate", 1e-5),
        ("steps=1_000", "steps", 1000),
        ("flip=no", "flip", False),
        ("flip=True", "flip", True),
        ("classes=", "classes", []),
        ("classes=[a, b]", "classes", ["a", "b"]),
        ("classes={n01: goldfish}", "classes", {"n01": "goldfish"}),
        ("schedule=linear", "schedule", "linear"),
        ("schedule={name: linear, start: 1.5}", "schedule", {"name": "linear", "start": 1.5}),
        ("schedule=", "schedule", None),
        ("schedule=null", "schedule", None),
    ],
)
def test_text_is_read_as_the_type_of_its_field(recipe_file, override, key, value):
    found = getattr(load_recipe(Recipe, "toy", recipe_file, [override]), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3"], "toy has no setting 'stepz'; it has data, steps, rate, classes, flip"),
        (["steps=many"], "toy setting steps='many' must be a whole number"),
        (["steps=1.5"], "steps='1.5' must be a whole number"),
        (["steps=true"], "steps='true' must be a whole number"),
        (["rate=fast"], "rate='fast' must be a number"),
        (["rate=nan"], "rate='nan' must be a number"),
        (["rate=null"], "rate='null' must be a number"),
        (["classes=apple"], r"classes='apple' must be a list such as .* or a mapping"),
        (["classes=[a"], r"classes='\[a' must be a list"),
        (["flip=1"], "flip='1' must be true or false"),
        (["steps"], "override 'steps' is not of the form key=value"),
    ],
)
def test_wrong_settings_are_refused(recipe_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(Recipe, "toy", recipe_file, overrides)


def test_values_of_a_file_are_checked_too(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, message in (
        ("toy: {data: [a]}", r"data=\['a'\] must be text"),
        ("toy: {steps: {a: 1}}", "must be a whole number"),
        ("toy: 3", "toy must be a mapping of settings, got 3"),
        ("- toy", "must hold sections of settings"),
        ("toy: {", "is no YAML"),
        ("toy: {}\nsizes: {s: {tyo: {}}}", "size s speaks of tyo, no section"),
        ("toy: {}\nsizes: {s: 3}", "size s must be a mapping of settings, got 3"),
        ("toy: {}\ndefault_size: s", "default_size 's' is none of its sizes"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(Recipe, "toy", path)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match=r"toy needs data; give data=\.\.\., or a recipe"):
        load_recipe(Recipe, "toy", None, ["steps=3"])


def test_needed_settings_have_no_default(recipe_file):
    with pytest.raises(ValueError, match=r"toy needs data, steps; give data=\.\.\. steps=\.\.\."):
        load_recipe(Recipe, "toy", None, needed=("steps",))
    with pytest.raises(ValueError, match=r"other needs steps; give steps=\.\.\.\.$"):
        load_recipe(Recipe, "other", recipe_file, needed=("steps",))
    assert load_recipe(Recipe, "toy", recipe_file, needed=("steps",)).steps == 20


def test_an_absent_section_is_an_error_and_an_empty_one_is_not(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text in ("toy:\n", "toy: {}\n"):
        path.write_text(text)
        assert load_recipe(Recipe, "toy", path, ["data=photos"]) == Recipe("photos")
    for text, sections in (("", "none"), ("other:\n  steps: 3\nmore: {}\n", "other, more")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"no section 'toy'; its sections are {sections}"):
            load_recipe(Recipe, "toy", path, ["data=photos"])


def test_sizes_say_what_differs(sized_file):
    def steps(size):
        return load_recipe(Recipe, "toy", sized_file, size=size).steps

    assert (steps(None), steps("s"), steps("m"), steps("3b")) == (5, 3, 5, 20)
    small = load_recipe(Recipe, "toy", sized_file, ["steps=4"], size="s")
    assert small == Recipe("photos", 4, classes={"a": "apple"}, precision="no")
    sized_file.write_text(SIZED.replace("default_size: m\n", ""))
    assert steps(None) == 3  # the first


def test_sizes_that_are_not_there_are_refused(sized_file, recipe_file):
    with pytest.raises(ValueError, match="no size 'xl'; it has s, m, 3b"):
        load_recipe(Recipe, "toy", sized_file, size="xl")
    with pytest.raises(ValueError, match="has no sizes, so leave --size s out"):
        load_recipe(Recipe, "toy", recipe_file, size="s")
    with pytest.raises(ValueError, match="--size s chooses a size of a recipe"):
        load_recipe(Recipe, "toy", None, size="s")


def test_a_recipe_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_family("masc").name == "masc" and "masc" in family_names()
    with pytest.raises(ValueError, match=r"no recipe file mask, .* codeclade are ctf, dcpe, iar"):
        read_family("mask")
    (tmp_path / "masc").write_text("toy: {data: own}")  # a file here comes first
    assert load_recipe(Recipe, "toy", "masc").data == "own"


@dataclass
class Base:
    seed: int = 0  # of all draws
    save_every: int = 500


@dataclass
class Derived(Base):
    scheme: str = ""  # what a position holds
    seed: int = 7  # another one
    schedule: str | dict | None = None
    rates: list = field(default_factory=lambda: [1, 2])


def test_settings_are_described_by_the_comments_of_their_fields():
    found = {one.name: one for one in settings(Derived)}
    assert list(found) == ["seed", "save_every", "scheme", "schedule", "rates"]
    assert (found["seed"].default, found["seed"].meaning) == ("7", "another one")
    assert (found["save_every"].default, found["save_every"].meaning) == ("500", "")
    assert (found["scheme"].default, found["scheme"].meaning) == ('""', "what a position holds")
    assert (found["schedule"].type, found["schedule"].default) == ("str or dict", "null")
    assert found["rates"].default == "[1, 2]"
    assert [one.default for one in settings(Recipe)][:5] == ["", "10", "0.001", "[]", "true"]
