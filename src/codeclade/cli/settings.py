"""What recipes may set: which command reads which section, and every key described.

The one source is the recipe dataclasses; `--help` of a command and docs/settings.md are made here.
"""

import importlib
import textwrap

from ..data.recipes import Setting, settings

# Section of a recipe file: the one command that reads it, and the dataclass of its settings.
READERS = {
    "tokenizer": ("train-tokenizer", "codeclade.training.tokenizer", "TokenizerRecipe"),
    "encode": ("encode", "codeclade.training.encode", "EncodeRecipe"),
    "text": ("encode-text", "codeclade.training.text_features", "TextRecipe"),
    "cluster": ("cluster", "codeclade.cli.cluster", "ClusterRecipe"),
    "generator": ("train-generator", "codeclade.training.generator", "GeneratorRecipe"),
    "refiner": ("train-refiner", "codeclade.training.refiner", "RefinerRecipe"),
}
INDENT = 24  # columns of a key in --help

PAGE = """# Settings of the recipes

A recipe is a YAML file with one section a command. `codeclade recipes` lists those that come with
codeclade and `codeclade recipes NAME --out FILE` copies one to change. On the command line
`key=value` sets a key over the recipe: `steps=2000 mixed_precision=no classes=[cat,dog]`.

This page is made from the code by `codeclade recipes --settings`; `--help` of each command shows
the same.
"""


def recipe_class(section: str) -> type:
    """The dataclass of the settings of a section."""
    _, module, name = READERS[section]
    return getattr(importlib.import_module(module), name)


def settings_help(section: str) -> str:
    """Every key of a section with default and meaning, for `--help`."""
    lines = [f"settings (section `{section}` of a recipe, or key=value):"]
    for setting in settings(recipe_class(section)):
        lines += _described(setting.name, f"{setting.meaning} ({_value(setting)})")
    # A method has settings of its own, so which of these hold depends on another setting.
    for method, options in method_settings().items() if section == "cluster" else ():
        lines += [f"\n  with method={method}:"]
        for setting in options:
            lines += _described(setting.name, f"{setting.meaning} ({_value(setting)})")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """docs/settings.md: every key of every section."""
    parts = [PAGE]
    for section, (verb, _, _) in READERS.items():
        parts += [f"## `{section}`: codeclade {verb}\n"]
        parts += [_table(settings(recipe_class(section)))]
        if section == "cluster":
            parts += ["A method's own settings:\n"]
            rows = [
                f"| {method} {_cells(one)}"
                for method, options in method_settings().items()
                for one in options
            ]
            head = "| method | key | type | default | meaning |\n| --- | --- | --- | --- | --- |\n"
            parts += [head + "\n".join(rows) + "\n"]
    return "\n".join(parts)


def method_settings() -> dict[str, list[Setting]]:
    """The settings of every clustering method that text can set, by method."""
    from ..clustering import METHODS
    from .cluster import OUTSIDE

    # Fields that text cannot give (arrays, generators) are for callers in Python only, and OUTSIDE
    # are given through settings of the verb.
    return {
        name: found
        for name, kind in METHODS.items()
        if (found := [one for one in settings(kind) if one.type and one.name not in OUTSIDE])
    }


def _table(described: list[Setting]) -> str:
    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(_cells(one) for one in described) + "\n"


def _cells(one: Setting) -> str:
    row = f"| `{one.name}` | {one.type} | {_code(one.default)} | {one.meaning} |"
    return row.replace("  ", " ")


def _code(default: str) -> str:
    return f"`{default}`" if default else "needed"


def _value(setting: Setting) -> str:
    return f"{setting.type}; " + (f"default {setting.default}" if setting.default else "needed")


def _described(name: str, text: str) -> list[str]:
    """A key and its description in columns, as argparse sets flags."""
    return textwrap.wrap(
        text.strip(),
        width=100,
        initial_indent=f"  {name} ".ljust(INDENT),
        subsequent_indent=" " * INDENT,
    )
