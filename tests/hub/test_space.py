"""The Space's front door: what is made for a push, what lies in spaces/, and what a wheel holds."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from codeclade.hub import space

ROOT = Path(__file__).parents[2]
RENEW = """write them anew:
python -c "from pathlib import Path
from codeclade.hub.space import front_door
for name, content in front_door().items(): Path('spaces', name).write_bytes(content)"
"""


def test_the_folder_holds_what_is_pushed():
    for name, content in space.front_door().items():
        assert (ROOT / "spaces" / name).read_bytes() == content, f"spaces/{name} is old; {RENEW}"


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    lines = [line for line in space.requirements().splitlines() if not line.startswith("#")]
    needed = {Requirement(line).name: Requirement(line) for line in lines}
    assert set(needed) == {Requirement(line).name for line in declared} | {"spaces"}
    for line in declared:
        requirement = Requirement(line)
        if requirement.name == "torch":
            assert requirement.specifier.contains("2.13.0")
        else:
            assert needed[requirement.name].specifier == requirement.specifier


def test_the_app_is_four_lines_of_a_gradio_that_the_package_takes():
    files = space.front_door(title="mine")
    assert len(files["app.py"].decode().split("\n\n")[0].splitlines()) == 1
    assert sum(bool(line) for line in files["app.py"].decode().splitlines()) == 4
    _, front, _ = files["README.md"].decode().split("---", 2)
    metadata = yaml.safe_load(front)
    assert metadata["title"] == "mine" and metadata["app_file"] in files
    (gradio,) = (
        Requirement(line)
        for line in files["requirements.txt"].decode().splitlines()
        if line.startswith("gradio")
    )
    assert gradio.specifier.contains(metadata["sdk_version"])


def test_without_a_source_the_requirements_are_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(space, "PACKAGE", tmp_path / "codeclade")
    monkeypatch.setattr(space.importlib.metadata, "requires", missing)
    with pytest.raises(OSError, match="it is not installed"):
        space.requirements()


def missing(name):
    raise space.importlib.metadata.PackageNotFoundError(name)


@pytest.mark.slow  # builds a wheel and starts a process from it
def test_a_wheel_holds_the_app_and_makes_the_same_front_door(tmp_path):
    """A wheel is an ordinary package: no file of it comes from outside src/codeclade."""
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    (built,) = hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "installed")
    package = ROOT / "src" / "codeclade"
    assert {"codeclade/demo/app.py", "codeclade/hub/space_readme.md"} <= names
    for name in names:
        assert name.startswith(("codeclade/", "codeclade-")), name
        # Recipes lie in hub_configs/ of a checkout and inside an installed package.
        recipe = ROOT / "hub_configs" / name.removeprefix("codeclade/recipes/")
        known = (package.parent / name).is_file() or recipe.is_file()
        assert name.startswith("codeclade-") or known, name
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from codeclade.hub.space import front_door\n"
        "print(front_door()['requirements.txt'].decode())"
    )
    site = "import site; site.main()\n"
    command = [sys.executable, "-I", "-c", site + code, str(tmp_path / "installed")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made.strip() == space.requirements().strip()
