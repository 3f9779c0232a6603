"""README.md tells the truth: snippets run, commands parse, the tree exists."""

import re
import shlex
from pathlib import Path

import pytest

from codeclade.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell_lines() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_snippet_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[number], f"README snippet {number}", "exec"), {})


def test_three_line_use_gives_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("python")[0], names)
    assert names["image"].size == (64, 64)


@pytest.mark.parametrize("line", [line for line in shell_lines() if "codeclade " in line])
def test_command_parses(line):
    words = shlex.split(line.replace("$R", "recipe.yaml"))
    words = words[words.index(next(w for w in words if w.endswith("codeclade"))) + 1 :]
    assert build_parser().parse_args(words).run


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(shell_lines()), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tree_names_what_is_there():
    tree = README.split("## The tree")[1].split("```")[1].strip()
    folder = Path()
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = Path(*folder.parts[: {0: 0, 2: 2, 4: 3}[indent]]) / name
        assert (ROOT / folder).exists(), folder


def test_pictures_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
