"""Hundreds more of damaged folders, by kinds of damage; see newest.py.

Of small pipelines, and a few of the bundled one, whose calls take seconds. A share of 1.0 is all.
"""

import random
from pathlib import Path

import pytest
import torch

from builders import build_scheme
from codeclade import bundled
from fuzz.batches import run_all
from fuzz.newest_files import NewestFiles

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("kind", "share"), [("small", 0.35), ("bundled", 0.03)])
def test_every_mutation_is_refused_in_one_sentence_or_harmless(kind, share, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where code that runs leaves its mark
    torch.set_num_threads(1)
    base = Path(bundled("ids"))
    if kind == "small":
        base = tmp_path / "base"
        build_scheme("token").save_pretrained(base)
    cases = list(NewestFiles(base).all())
    cases = random.Random(0).sample(cases, int(share * len(cases)))
    wrong = run_all(cases, tmp_path)
    assert len(cases) >= {"small": 350, "bundled": 30}[kind]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)}:", *wrong])
    assert not (tmp_path / "code ran").exists(), "code of a folder ran"
