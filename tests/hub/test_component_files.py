"""Single component files: complete, without codeclade, and equal to the package's classes."""

import ast
import importlib.util
import subprocess
import sys

import pytest
import torch

import codeclade
from codeclade.hub import component_files
from codeclade.hub.component_files import MODULES, file_name, single_file


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Path of the single file of every class."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for name in MODULES:
        paths[name] = folder / name / file_name(name)
        paths[name].parent.mkdir()
        paths[name].write_text(single_file(name))
    return paths


def load(path, class_name: str):
    spec = importlib.util.spec_from_file_location(f"single_{class_name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, class_name)


@pytest.mark.parametrize("name", MODULES)
def test_imports_nothing_of_the_package(written, name):
    tree = ast.parse(written[name].read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert imports
    for node in imports:
        assert not getattr(node, "level", 0)
        names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
        assert not any(name.startswith("codeclade") for name in names)


def test_no_name_is_undefined_or_defined_twice(written):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9"]
    result = subprocess.run([*command, written["VQModel"].parents[1]], capture_output=True)
    assert result.returncode == 0, result.stdout.decode()


def test_file_names_are_unique_among_components():
    names = [file_name(name) for name in MODULES if not name.endswith("Pipeline")]
    assert len(set(names)) == len(names)
    assert file_name("CodecladePipeline") == file_name("CodecladeTextPipeline") == "pipeline.py"


def test_classes_of_files_compute_the_same(written, tiny_pipeline):
    pipe = tiny_pipeline("cluster")
    parts = {}
    for name, part in pipe.components.items():
        if part is None:
            continue
        kind = load(written[type(part).__name__], type(part).__name__)
        assert kind is not type(part)
        new = kind.from_config(part.config) if hasattr(kind, "from_config") else kind(part.config)
        new.load_state_dict(part.state_dict())
        parts[name] = new.eval()
    own = load(written["CodecladePipeline"], "CodecladePipeline")
    other = own(**parts, id2label=pipe.config.id2label)
    other.set_progress_bar_config(disable=True)
    images = [
        p("tabby", output_type="pt", generator=torch.Generator().manual_seed(3)).images
        for p in (pipe, other)
    ]
    assert torch.equal(*images)


def test_files_hold_what_the_class_needs_and_no_more(written):
    source = written["VQModel"].read_text()
    assert "class StrictLoading" in source and "class CosineQuantizer" in source
    assert "class CodecladeTransformer" not in source
    assert "def rotation" in written["Refiner"].read_text()
    assert f"codeclade {codeclade.__version__}" in source


def test_unknown_class():
    with pytest.raises(ValueError, match="Unet is no component; there are VQModel, "):
        single_file("Unet")


def test_one_name_for_two_things_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('"""A."""\n\ndef f():\n    return 1\n')
    (tmp_path / "b.py").write_text(
        '"""B."""\n\nfrom .a import f\n\n\ndef f():\n    return 2\n\n\nclass B:\n    g = f\n'
    )
    monkeypatch.setattr(component_files, "FOLDER", tmp_path)
    monkeypatch.setitem(MODULES, "B", "b")
    with pytest.raises(ValueError, match=r"components/b\.py gives the name f a second meaning"):
        single_file("B")
