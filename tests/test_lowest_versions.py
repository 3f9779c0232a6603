"""tests/lowest.txt, which `make test-lowest` installs, pins what pyproject.toml promises."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"torch"}  # its old builds are large: the Makefile names one
EXTRAS = ("train", "eval", "peft", "demo")


def test_every_lower_bound_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [*project["dependencies"]]
    promised += [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, promised):
        if requirement.name in LEFT_OUT:
            continue
        (lowest,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
        # A later fix of the same release may be pinned, as where the first one has no wheel.
        bound, pinned = Version(lowest).release, Version(pins[requirement.name]).release
        assert pinned[: len(bound)] == bound, requirement.name
