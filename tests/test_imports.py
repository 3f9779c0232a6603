"""Which part of the package imports which: the direction of the dependencies, and cheap imports."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import codeclade

ROOT = Path(codeclade.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ROOMS = {"components", "clustering", "data", "metrics", "training", "evaluation"}
ROOMS |= {"checkpoints", "hub", "demo", "cli"}


def all_but(*allowed: str) -> tuple[str, ...]:
    return tuple(sorted(ROOMS - set(allowed)))


FORBIDDEN = {
    "components": all_but("components"),
    "clustering": all_but("clustering"),
    "metrics": all_but("metrics"),
    "data": all_but("data", "components"),
    "training": all_but("training", "data", "metrics", "clustering", "components"),
    "evaluation": all_but("evaluation", "data", "metrics", "checkpoints", "components"),
    "checkpoints": all_but("checkpoints", "data", "clustering", "components"),
    "hub": all_but("hub", "data", "checkpoints", "components"),
    "demo": ("cli",),
}
# A component file travels with the weights, so it may need nothing that a user does not have.
COMPONENT_LIBRARIES = {"torch", "diffusers", "transformers", "safetensors", "accelerate"}
COMPONENT_LIBRARIES |= {"PIL", "numpy", "tokenizers", "huggingface_hub"}  # which those need
# Imported where the library is there, and not before.
OPTIONAL = {"_small_steps.py": {"numba"}, "_stack_step.py": {"numba"}}
HEAVY = ("torch", "transformers", "diffusers", "accelerate", "datasets", "scipy", "numba")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """The sub-package of a file, or the stem of a file at the top."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def resolved(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    """Absolute dotted names that an import statement in `package` names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def imports(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    package = ["codeclade", *path.relative_to(ROOT).parts[:-1]]
    inside_functions = set()
    if top_level_only:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside_functions |= {id(inner) for inner in ast.walk(node)}
    return [
        target
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in inside_functions
        for target in resolved(node, package)
    ]


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys; print(*sorted(sys.modules), file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {module.split(".")[0] for module in result.stderr.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import codeclade; codeclade.bundled(); codeclade.__version__; dir(codeclade)",
        "import codeclade.cli as cli; cli.build_parser().format_help()",
    ],
)
def test_the_package_and_its_help_load_nothing_heavy(statement):
    assert modules_after(statement).isdisjoint(HEAVY)


def test_clustering_loads_no_torch():
    loaded = modules_after("import codeclade.clustering")
    assert loaded.isdisjoint({"torch", "transformers", "diffusers"})


def test_public_names_are_what_they_say():
    for public in codeclade.__all__:
        assert hasattr(codeclade, public), public
    module = importlib.import_module("codeclade.components.pipeline")
    assert codeclade.CodecladePipeline is module.CodecladePipeline
    assert set(codeclade.__all__) <= set(dir(codeclade))
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = codeclade.Pipeline


@pytest.mark.parametrize("path", FILES, ids=name)
def test_dependencies_point_one_way(path):
    for other in FORBIDDEN.get(room(path), ()):
        package = f"codeclade.{other}"
        wrong = [t for t in imports(path) if t == package or t.startswith(f"{package}.")]
        assert not wrong, f"{name(path)} imports {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "components"], ids=name)
def test_component_files_need_only_what_a_user_has(path):
    for target in imports(path):
        library = target.split(".")[0]
        if library == "codeclade":
            assert target.startswith("codeclade.components."), target
            sibling = target.split(".")[2]  # one level: a file copied to the Hub can follow it
            assert (ROOT / "components" / f"{sibling}.py").is_file(), target
        else:
            allowed = COMPONENT_LIBRARIES | OPTIONAL.get(path.name, set())
            assert library in allowed or library in sys.stdlib_module_names, target


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "clustering"], ids=name)
def test_clustering_needs_torch_at_most_inside_functions(path):
    if path.name == "_on_device.py":  # imported inside functions, where a device is asked for
        return
    libraries = {target.split(".")[0] for target in imports(path, top_level_only=True)}
    assert libraries.isdisjoint({"torch", "diffusers", "transformers", "accelerate"})


def test_the_rules_above_see_imports_of_every_form():
    source = "import torch.nn\nfrom . import a\nfrom .b import c\nfrom ..hub import d\n"
    found = [
        target
        for node in ast.parse(source).body
        for target in resolved(node, ["codeclade", "components"])
    ]
    inside = "codeclade.components"
    assert found == ["torch.nn", f"{inside}.a", f"{inside}.b.c", "codeclade.hub.d"]
