"""Hundreds of damaged and hostile files for `convert` and `cluster`: refused in one sentence.

`python -m pytest -m fuzz tests/fuzz`; minutes, bounded in memory and time, the same every time.
What every file was answered is in outcomes.txt of the test's folder.
"""

import shutil

import pytest
import torch

from codeclade import ClusterMap, CodecladePipeline
from fuzz.conversions import conversions
from fuzz.published import Published
from fuzz.runner import judge, run

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]


def garbage(out, verb: str) -> str | None:
    """What is wrong with an accepted result."""
    try:
        if verb == "cluster":
            found = ClusterMap.from_pretrained(out)
            parts = [found.sketch, found.heights]
            assert found.mapping.unique().tolist() == list(range(found.num_clusters))
        else:
            pipe = CodecladePipeline.from_pretrained(out)
            parts = [*pipe.vq_model.parameters(), *pipe.transformer.parameters()]
        assert all(part.isfinite().all() for part in parts), "numbers that are not finite"
    except Exception as error:
        return f"accepted, but {type(error).__name__}: {error}"
    return None


def test_every_mutation_is_refused_in_one_sentence_or_harmless(tmp_path):
    torch.set_num_threads(1)
    import codeclade.checkpoints.cluster_maps
    import codeclade.checkpoints.codebooks  # noqa: F401 (every case is forked from this process)

    files = tmp_path / "f"
    files.mkdir()
    good = Published(files)
    for arguments in (
        good.llamagen(),
        good.cluster(files / "vq.pt"),
        good.dcpe(files / "index.pt"),
    ):
        out = tmp_path / "good"
        outcome = run([*arguments, "--out", str(out)], tmp_path / "log")
        assert outcome.code == 0, outcome.text  # the files are fine before they are mutated
        shutil.rmtree(out)
    wrong, count = [], 0
    (tmp_path / "outcomes.txt").touch()
    for name, arguments, accepted in conversions(good):
        count += 1
        out = tmp_path / "out"
        own = "--out" in arguments
        arguments = arguments if own else [*arguments, "--out", str(out)]
        before = sorted(path.name for path in tmp_path.iterdir())
        outcome = run(arguments, tmp_path / "log")
        with (tmp_path / "outcomes.txt").open("a") as outcomes:
            outcomes.write(f"{name} -> {outcome.code}: {outcome.text.strip()}\n")
        problem = judge(outcome, arguments[0])
        if problem is None and outcome.code == 0:
            problem = "accepted" if accepted is False or own else garbage(out, arguments[0])
        if problem is None and outcome.code == 2:
            left = sorted(path.name for path in tmp_path.iterdir())
            problem = "refused" if accepted else None
            problem = f"left {set(left) - set(before)}" if left != before else problem
        if problem:
            wrong.append(f"{name}: {problem}")
            print(wrong[-1], flush=True)
        shutil.rmtree(out, ignore_errors=True)
    assert not (files / "executed").exists()
    assert (files / "elsewhere" / "kept.txt").read_text() == "years of work"
    assert (files / "gpt.pt").stat().st_size > 1000
    print(f"{count} mutations")
    assert count >= 250
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong])
