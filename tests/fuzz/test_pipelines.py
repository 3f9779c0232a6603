"""A thousand damaged and hostile pipeline folders: refused in one sentence.

`python -m pytest -m fuzz tests/fuzz`; minutes, bounded in memory and time, the same every time.
What every folder was answered is in outcomes.txt of the test's folder.
"""

import pytest
import torch

from codeclade import CodecladePipeline, CodecladeTextPipeline
from fuzz.batches import run_all
from fuzz.weights import Weights

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]


def test_every_mutation_is_refused_in_one_sentence_or_harmless(tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "f").mkdir()
    good = Weights(tmp_path / "f")
    for name, folder in good.folders():  # the folders are fine before they are mutated
        kind = CodecladeTextPipeline if name == "text" else CodecladePipeline
        kind.from_pretrained(folder)
    cases = list(good.all())
    print(f"{len(cases)} mutations")
    wrong = run_all(cases, tmp_path)
    print("\n".join(wrong))
    assert len(cases) >= 900
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)}:", *wrong])
