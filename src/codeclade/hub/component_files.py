"""Component code as single files, for repositories that load without codeclade being installed.

The Hub loader takes one .py file per component (its neighbors are not downloaded), while the
package keeps one idea per file. So a file is put together from the module of a class and what it
uses of its neighbors, definition by definition, with every comment. Nothing is rewritten.
"""

import ast
import functools
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import __version__, components

FOLDER = Path(components.__file__).parent

# Components other than a file's own are named in annotations alone; there the base class will do.
STAND_INS = {
    "VQModel": "from diffusers.models.modeling_utils import ModelMixin as VQModel",
    "ClusterMap": "from diffusers.models.modeling_utils import ModelMixin as ClusterMap",
    "CodecladeTransformer": "from transformers import PreTrainedModel as CodecladeTransformer",
    "Refiner": "from transformers import PreTrainedModel as Refiner",
}
MODULES = {
    "VQModel": "vq_model",
    "ClusterMap": "cluster_map",
    "CodecladeTransformer": "transformer",
    "Refiner": "refiner",
    "CodecladePipeline": "pipeline",
    "CodecladeTextPipeline": "text_pipeline",
}


@dataclass
class Definition:
    """One top-level statement of a module that gives names."""

    module: str
    names: set[str]
    uses: set[str]  # names it reads
    source: str  # with the comments above it


def file_name(class_name: str) -> str:
    """Name of the single file of a component or pipeline class.

    Unique names, because all such files of a process share one package.
    """
    if class_name.endswith("Pipeline"):
        return "pipeline.py"
    return f"modeling_codeclade_{MODULES[class_name]}.py"


def single_file(class_name: str) -> str:
    """Source of one importable file that defines the class, with no import from codeclade.

    Raises:
        ValueError: a class that is no component, or neighbors that use one name for two things.
    """
    if class_name not in MODULES:
        raise ValueError(f"{class_name} is no component; there are {', '.join(MODULES)}.")
    # Read: neighbors first, so that the definitions run from top to bottom as they stand, and the
    # last docstring read is that of the class's own module.
    stand_ins = {name: line for name, line in STAND_INS.items() if name != class_name}
    docstring, imports, definitions = "", {}, {}
    for module in _with_neighbors(MODULES[class_name]):
        docstring = _read(module, imports, definitions)
    # Choose: all of every neighbor would bring libraries that the component does not need, and the
    # loader refuses a file whose imports are not installed.
    wanted, kept = _needed(class_name, definitions, stand_ins)
    lines = {imports[name] for name in wanted if name in imports}
    lines |= {stand_ins[name] for name in wanted if name in stand_ins}
    # Write: the file lives on without this repository, so it says what it was made of and by which
    # version.
    modules = dict.fromkeys(definition.module for definition in kept)
    names = ", ".join(f"{module}.py" for module in modules)
    note = textwrap.fill(
        f"codeclade {__version__} (MIT license), put together from src/codeclade/components/ "
        f"({names}), so that this repository loads where codeclade is not installed.",
        width=100,
        initial_indent="# ",
        subsequent_indent="# ",
    )
    body = "\n\n\n".join(definition.source for definition in kept)
    return f"{docstring}\n\n{note}\n\n{_import_block(lines)}\n\n\n{body}\n"


def _with_neighbors(module: str) -> list[str]:
    """A module after all the modules it imports from, each once."""
    order = []
    for node in _parsed(FOLDER / f"{module}.py")[1].body:
        if isinstance(node, ast.ImportFrom) and node.level:
            order += _with_neighbors(node.module)
    return list(dict.fromkeys([*order, module]))


@functools.cache
def _parsed(path: Path) -> tuple[str, ast.Module]:
    """Source and syntax tree of a module, which many others import."""
    source = path.read_text()
    return source, ast.parse(source)


def _read(module: str, imports: dict[str, str], definitions: dict[str, Definition]) -> str:
    """Add a module's library imports and definitions to the two tables; returns its docstring."""
    source, tree = _parsed(FOLDER / f"{module}.py")
    lines = source.splitlines()
    docstring, *statements = tree.body
    end = docstring.end_lineno
    for node in statements:
        # From the end of the one before: comments and decorators above a definition go with it.
        start, end = end, node.end_lineno
        if isinstance(node, ast.ImportFrom) and node.level:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, line in _single_imports(node):
                _once(imports, name, line, module)
            continue
        names = _given(node)
        if "__getattr__" in names:  # old names of a module; a single file has none
            continue
        # Which other names a definition uses decides what the single file must hold.
        text = "\n".join(lines[start:end]).strip("\n")
        definition = Definition(module, names, _used(node) - names, text)
        for name in names:
            _once(definitions, name, definition, module)
    return "\n".join(lines[docstring.lineno - 1 : docstring.end_lineno])


def _once(table: dict, name: str, value, module: str) -> None:
    if table.setdefault(name, value) != value:
        raise ValueError(f"components/{module}.py gives the name {name} a second meaning.")


def _single_imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Every name a library import gives, with a statement that imports it alone."""
    for alias in node.names:
        what = alias.name + (f" as {alias.asname}" if alias.asname else "")
        name = alias.asname or alias.name.split(".")[0]
        if isinstance(node, ast.ImportFrom):
            yield name, f"from {node.module} import {what}"
        else:
            yield name, f"import {what}"


def _given(node: ast.stmt) -> set[str]:
    """Names that a top-level statement defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _is_stored(n)}


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _used(node: ast.stmt) -> set[str]:
    """Names read anywhere in a statement, quoted annotations included.

    A quoted name of another component is text: it stands for itself in tables of parts.
    """
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    quoted = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    words = {word for word in quoted if isinstance(word, str) and word.isidentifier()}
    return names | (words - STAND_INS.keys())


def _needed(
    class_name: str, definitions: dict[str, Definition], stand_ins: dict[str, str]
) -> tuple[set[str], list[Definition]]:
    """All names the class leads to, and their definitions in order."""
    wanted, to_do = set(), [class_name]
    while to_do:
        name = to_do.pop()
        if name in wanted:
            continue
        wanted.add(name)
        # A stand-in ends the search: another component would bring all of its own code.
        if name in definitions and name not in stand_ins:
            to_do += definitions[name].uses
    # One statement may give several names; by its identity it is kept once.
    kept = {id(d): d for name, d in definitions.items() if name in wanted and name not in stand_ins}
    return wanted, list(kept.values())


def _import_block(lines: set[str]) -> str:
    """Import statements, the standard library's first, one a module; aliases stand alone."""
    # Sorted throughout: sets have no order, and the same class must give the same bytes, or every
    # push would change the file.
    modules, plain = {}, []
    for line in sorted(lines):
        module, _, name = line.removeprefix("from ").partition(" import ")
        if line.startswith("from ") and " as " not in name:
            modules.setdefault(module, []).append(name)
        else:
            plain.append(line)
    for module, names in modules.items():
        line = f"from {module} import {', '.join(names)}"
        wrapped = f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"
        plain.append(line if len(line) <= 100 else wrapped)
    groups = {True: [], False: []}
    for line in plain:
        groups[line.split()[1].split(".")[0] in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(groups[side]) for side in (True, False) if groups[side])
