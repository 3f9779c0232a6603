"""README.md and docs/ tell the truth: snippets run, commands parse, links, pictures, the tree."""

import ast
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeclade.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = ROOT / "src" / "codeclade"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def numbered(language: str) -> list:
    """Every block of every page, named by page and number."""
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language))
        if "cifar-10" not in block  # needs its archive, and has a test below
    ]


def shell_lines() -> list[str]:
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("code", numbered("python")[1:])  # the first runs in a test below
def test_snippet_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


def write_cifar(folder: Path) -> None:
    """Two pictures as CIFAR-10's archive holds them: rows of all red, all green, all blue bytes."""
    folder.mkdir()
    meta = {"label_names": ["airplane", "cat"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    for name, label, color in (("data_batch_1", 1, 0), ("test_batch", 0, 2)):
        pixels = np.zeros((1, 3072), np.uint8)
        pixels[0, 1024 * color : 1024 * color + 32] = 255  # the top line
        batch = {b"data": pixels, b"labels": [label], b"filenames": [b"one.png"]}
        (folder / name).write_bytes(pickle.dumps(batch))


def test_the_archive_of_cifar_becomes_a_folder_a_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(Path("cifar-10-batches-py"))
    page = ROOT / "docs" / "train_your_own.md"
    exec(next(code for code in blocks(page, "python") if "cifar-10" in code), {})
    photos = {str(path): Image.open(path) for path in sorted(Path("photos").rglob("*.png"))}
    assert list(photos) == ["photos/test/airplane/one.png", "photos/train/cat/one.png"]
    for photo, color in zip(photos.values(), ((0, 0, 255), (255, 0, 0)), strict=True):
        assert (photo.getpixel((31, 0)), photo.getpixel((0, 1))) == (color, (0, 0, 0))


def test_three_line_use_gives_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(ROOT / "README.md", "python")[0], names)
    assert names["image"].size == (64, 64)


@pytest.mark.parametrize("line", sorted({line for line in shell_lines() if "codeclade " in line}))
def test_command_parses(line):
    words = shlex.split(line.replace("$R", "recipe.yaml"))
    words = words[words.index(next(w for w in words if w.endswith("codeclade"))) + 1 :]
    assert build_parser().parse_args(words).run


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make (\w[\w-]*)", "\n".join(shell_lines()), re.MULTILINE)
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 180


def test_the_readme_names_what_is_there():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1].strip()
    folder = Path()
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = Path(*folder.parts[: {0: 0, 2: 2, 4: 3}[indent]]) / name
        assert (ROOT / folder).exists(), folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page):
    for path in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not path.startswith("http"):
            assert (page.parent / path).exists(), path


def described_tree() -> str:
    """docs/tree.md: every source file with the first sentence of what it says of itself."""
    lines = ["# Every file in one line", "", "```", "src/codeclade/"]
    for path in sorted(SOURCE.rglob("*.py"), key=lambda p: (p.parent.parts, p.name)):
        name = path.relative_to(SOURCE).as_posix()
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        first = " ".join(text.split()).split(". ")[0].rstrip(".")
        if path.name != "__init__.py" or first:
            lines.append(f"  {name:<38} {first}".rstrip())
    return "\n".join([*lines, "```", ""])


def test_the_tree_is_up_to_date():
    """Write it anew with: python tests/test_docs.py"""
    assert (ROOT / "docs" / "tree.md").read_text() == described_tree()


if __name__ == "__main__":
    (ROOT / "docs" / "tree.md").write_text(described_tree())
