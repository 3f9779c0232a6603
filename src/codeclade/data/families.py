"""Recipe files: sections of settings, in several sizes, one YAML a family of models.

    about: {title: MASC, ...}   # of the recipes that ship: what the table of models says
    default_size: b             # else the first
    sizes:
      b: {generator: {hidden_size: 768}}    # what differs from the sections below
    generator: {steps: 1000}    # one section a command

A file without `sizes` is a recipe of one size.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parents[1]
BESIDE = ("about", "default_size", "sizes", "configs")  # keys that are no section of a command
SIZE_NOTES = ("published", "weights", "protocol", "guidance_note")  # a size says these anew


@dataclass
class About:
    """What a family is, for the table of models."""

    title: str
    summary: str  # one sentence
    paper: str = ""  # "arXiv 2406.06525"
    license: str = "other"  # of published code and weights, as the Hub names it
    license_note: str = ""
    converter: str = ""  # KIND of `codeclade convert`
    hosted: str = ""  # where published files are
    published: dict[str, str] = field(default_factory=dict)  # FID, IS, precision, recall, note
    weights: dict[str, str] = field(default_factory=dict)  # files, by flag of `codeclade convert`
    protocol: str = ""  # how the published numbers were measured
    guidance_note: str = ""  # on the sampling defaults


@dataclass
class Family:
    """A recipe file: its text as YAML reads it, and with every scalar left as text."""

    path: Path
    content: dict[str, Any]
    texts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def sizes(self) -> list[str]:
        """Names of the sizes, in the order of the file; none for a recipe of one size."""
        return [str(size) for size in self.texts.get("sizes") or {}]

    @property
    def sections(self) -> list[str]:
        """Names of the sections, in the order of the file."""
        return [name for name in self.content if name not in BESIDE]

    def size(self, wanted: str | None = None) -> str | None:
        """`wanted` if it is a size of this file; without it the default one.

        Raises:
            ValueError: a size this file does not have.
        """
        if wanted is None:
            default = self.texts.get("default_size")
            return default or next(iter(self.sizes), None)
        if not self.sizes:
            raise ValueError(f"{self.path} has no sizes, so leave --size {wanted} out.")
        if wanted not in self.sizes:
            raise ValueError(f"{self.path} has no size {wanted!r}; it has {', '.join(self.sizes)}.")
        return wanted

    def values(self, section: str, size: str | None = None) -> dict[str, Any]:
        """The settings of a section in a size: scalars as text, containers as YAML reads them.

        Raises:
            ValueError: a section or size this file does not have.
        """
        if section not in self.sections:
            known = ", ".join(self.sections) or "none"
            raise ValueError(f"{self.path} has no section {section!r}; its sections are {known}.")
        # YAML reads `no` as false and `1e-4` as text, so scalars stay as they are written until the
        # type of their field is known. What is inside lists and mappings has no field to say its
        # type and is taken as YAML reads it.
        read, texts = self.merged(section, size), self._merged(self.texts, section, size)
        return {key: texts[key] if isinstance(texts[key], str) else read[key] for key in read}

    def merged(self, key: str, size: str | None = None) -> dict[str, Any]:
        """What the file says under `key`, and its size over it, as YAML reads it."""
        return self._merged(self.content, key, size)

    def _merged(self, content: dict[str, Any], key: str, size: str | None) -> dict[str, Any]:
        size = self.size(size)
        # A size called 384 is a number in one of the two readings and text in the other.
        sizes = {str(name): value for name, value in (content.get("sizes") or {}).items()}
        special = (sizes[size] or {}).get(key) if size else None
        return {**(content.get(key) or {}), **(special or {})}

    def about(self, size: str | None = None) -> About:
        """What the family is, with what a size says anew.

        Raises:
            ValueError: a file without `about`, or with keys in it that mean nothing.
        """
        size = self.size(size)
        own = (self.texts["sizes"][size] or {}) if size else {}
        own = {key: value for key, value in own.items() if key in SIZE_NOTES}
        try:
            return About(**{**(self.texts.get("about") or {}), **own})
        except TypeError as error:
            raise ValueError(f"about in {self.path}: {str(error).split(') ')[-1]}.") from None


def recipes_folder() -> Path:
    """Where the recipes are: inside an installed package, or in the top folder of a checkout.

    Raises:
        OSError: in neither.
    """
    for folder in (HERE / "recipes", HERE.parents[1] / "hub_configs"):
        if folder.is_dir():
            return folder
    raise OSError(f"the recipes are missing: {HERE / 'recipes'} must hold them.")


def family_names() -> list[str]:
    """Names of the recipes that ship with codeclade."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def read_family(source: str | Path) -> Family:
    """The recipe of a file, or of a name of those that ship with codeclade.

    Raises:
        ValueError: no such file or name, or content that is no mapping of sections.
    """
    # A file here wins over a recipe that ships under the same name: the user put it there.
    path = Path(source)
    if not path.is_file() and str(source) in family_names():
        path = recipes_folder() / f"{source}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no recipe file {source}, and no recipe of that name; those that come with "
            f"codeclade are {', '.join(family_names())}."
        )
    text = path.read_text(encoding="utf-8")
    try:
        content, texts = yaml.safe_load(text) or {}, yaml.load(text, yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    _check(path, content)
    return Family(path, content, texts)


def _check(path: Path, content: Any) -> None:
    """Raise a ValueError unless every section and size is a mapping of known kind."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections of settings, got {str(content)[:40]!r}.")
    sections = {name for name in content if name not in BESIDE}
    mappings = {name: value for name, value in content.items() if name != "default_size"}
    for size, special in (content.get("sizes") or {}).items():
        mappings[f"size {size}"] = special
        if not isinstance(special, dict):
            continue
        # A misspelled section would be merged into nothing, and the size would train as the
        # default.
        unknown = set(special) - sections - {"configs", *SIZE_NOTES}
        if unknown:
            raise ValueError(f"{path}: size {size} speaks of {sorted(unknown)[0]}, no section.")
    for name, value in mappings.items():
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{path}: {name} must be a mapping of settings, got {value!r}.")
    default = content.get("default_size")
    if default is not None and default not in (content.get("sizes") or {}):
        raise ValueError(f"{path}: default_size {default!r} is none of its sizes.")
