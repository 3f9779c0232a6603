"""`codeclade recipes`: the recipes that come with codeclade, their table and their configs."""

import argparse
import shutil
from pathlib import Path

from ..data.atomic import new_file, new_folder
from .arguments import add_verb

EXAMPLES = """codeclade recipes
  codeclade recipes masc
  codeclade recipes masc --out masc.yaml
  codeclade recipes masc --size l --configs masc-l"""


def add_recipes(verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs, "recipes", _recipes, "list, show and copy the recipes of published models", EXAMPLES
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="none: list all")
    parser.add_argument("--out", metavar="FILE", help="copy the recipe there, to change it")
    parser.add_argument(
        "--configs", metavar="DIR", help="write config.json of every component of --size there"
    )
    parser.add_argument("--size", metavar="SIZE", help="of --configs; default: the recipe's own")
    parser.add_argument("--table", action="store_true", help="print the table of all models")
    parser.add_argument("--settings", action="store_true", help="print the page of all settings")


def _recipes(arguments: argparse.Namespace) -> None:
    # Flags that need each other; every one that is given does something.
    for flag in ("out", "configs"):
        if getattr(arguments, flag) and not arguments.name:
            raise ValueError(f"--{flag} is for one recipe; give its name.")
    if arguments.size and not arguments.configs:
        raise ValueError(f"--size {arguments.size} is for --configs DIR.")
    if (arguments.table or arguments.settings) and arguments.name:
        raise ValueError("--table and --settings are of all recipes; give no name.")

    # What is said of all recipes.
    if arguments.table:
        from .recipe_table import model_table

        print(model_table())
    elif arguments.settings:
        from .settings import settings_page

        print(settings_page(), end="")
    elif arguments.name:
        _one_recipe(arguments)
    else:
        print("\n".join(_list()))


def _list() -> list[str]:
    """A line for every recipe that comes with codeclade."""
    from ..data.families import family_names, read_family

    families = [read_family(name) for name in family_names()]
    wide = max(len(family.name) for family in families)
    return [
        f"{family.name:{wide}}  {family.about().summary}"
        + (f" Sizes {', '.join(family.sizes)}." if family.sizes else "")
        for family in families
    ]


def _one_recipe(arguments: argparse.Namespace) -> None:
    """Copy a recipe, write the configs of its components, or show what it is."""
    from ..data.families import read_family

    family = read_family(arguments.name)
    if arguments.out:
        copy_recipe(family.path, arguments.out)
        print(f"saved {arguments.out}")
    if arguments.configs:
        from ..data.component_configs import component_configs, write_configs

        # Derived before the folder is made: a recipe of one's own may say too little for it.
        configs = component_configs(family, arguments.size)
        with new_folder(arguments.configs) as folder:
            write_configs(configs, folder)
        print(f"saved {', '.join(configs)} in {arguments.configs}")
    if not (arguments.out or arguments.configs):
        from .recipe_table import describe

        print(describe(family))


def copy_recipe(path: Path, out: str) -> None:
    """Copy a recipe file.

    Raises:
        ValueError: something is there already, or there is no folder for it.
    """
    # There is no --overwrite: what would be lost was most likely edited by hand.
    if Path(out).exists():
        raise ValueError(f"--out {out} is there already; choose another name.")
    if not Path(out).parent.is_dir():
        raise ValueError(f"there is no folder {Path(out).parent} for {Path(out).name}.")
    with new_file(out) as partial:
        shutil.copyfile(path, partial)
