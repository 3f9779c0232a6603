"""Training on two processes (gloo, CPU) against one."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from shared_runs import assert_alike, launched

SCRIPT = Path(__file__).parent / "processes.py"
RUNS = ("losses", "passes", "dropout", "usage", "tokenizer", "sharded", "generator", "reports")
OTHERS = ("grow", "low_rank", "text", "refiner")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of a launch of two processes, and what each of them found."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launched(SCRIPT, folder, folder, *RUNS)


@pytest.fixture
def one():
    """The same trainings, for one process."""
    spec = importlib.util.spec_from_file_location("processes", SCRIPT)
    processes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(processes)
    return processes


def logged(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("what", "passes"), [("losses", 1), ("passes", 2)])
def test_two_processes_take_the_steps_of_one(one, two, tmp_path, what, passes):
    alone = one.losses(tmp_path)
    first, second = (rank[what] for rank in two[1])
    assert first["passes"] == second["passes"] == passes
    assert len(logged(tmp_path)) == 20
    assert logged(two[0] / what) == pytest.approx(logged(tmp_path), abs=1e-5)
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-5)


def test_processes_drop_different_units_and_resume_their_own(two):
    first, second = (rank["dropout"] for rank in two[1])
    for rank in (first, second):
        before, step, again = rank["masks"]
        assert step == again and step != before
    assert all(a != b for a, b in zip(first["masks"], second["masks"], strict=True))
    assert first["weights"] == second["weights"]


def test_codes_that_any_process_uses_are_alive(two):
    first, second = (rank["usage"] for rank in two[1])
    assert first["counts"] == second["counts"] == [3.0] * 8 + [0.0] * 2
    assert first["changed"] == [8, 9] and first["moved"] == 2
    assert first["codebook"] == second["codebook"]


def test_two_processes_train_the_tokenizer_of_one(one, two, tmp_path):
    """Losses, codebooks, discriminator and usage: all are of all processes."""
    compare_tokenizers(one.tokenizer, two, tmp_path)


@pytest.mark.slow  # another launch
def test_two_processes_train_codebooks_by_gradient(one, tmp_path):
    train = one.tokenizer_by_gradient
    two = tmp_path, launched(SCRIPT, tmp_path, tmp_path, train.__name__)
    compare_tokenizers(train, two, tmp_path / "one")


def compare_tokenizers(train, two, folder: Path) -> None:
    """A training of two processes, found by its name, against the same of one."""
    what = train.__name__
    first, second = (rank[what] for rank in two[1])
    alone = train(folder / what)
    assert first == second
    for name, values in alone.items():
        assert first[name] == pytest.approx(values, abs=1e-5), name
    lines = [
        [json.loads(line) for line in (place / what / "log.jsonl").read_text().splitlines()]
        for place in (folder, two[0])
    ]
    assert len(lines[0]) == len(lines[1]) == 8
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        numbers = ours.keys() - {"seconds", "seconds_left", "images_per_second"}
        assert {k: theirs[k] for k in numbers} == pytest.approx(
            {k: ours[k] for k in numbers}, abs=1e-5, rel=1e-5
        )


def test_averages_survive_sharding(two):
    """fully_shard on two processes: half the numbers each, the same averages and checkpoints."""
    for found in two[1]:
        whole, shards = found["sharded"]["whole"], found["sharded"]["shards"]
        for key, value in whole["averages"].items():
            torch.testing.assert_close(
                torch.tensor(shards["averages"][key]), torch.tensor(value), rtol=0, atol=1e-6
            )
        assert whole["restored"] and shards["restored"]
        assert whole["loaded"] and shards["loaded"]
    held = [found["sharded"]["shards"]["held"] for found in two[1]]
    assert sum(held) == two[1][0]["sharded"]["whole"]["held"]
    assert max(held) < sum(held)


def test_a_generator_trains_alike_on_one_and_two_processes(one, two, tmp_path):
    """Global means of everything that is logged, with accumulation, validation and samples."""
    alone = one.generator(tmp_path)["log"]
    together = two[1][0]["generator"]["log"]
    assert len(alone) == len(together) > 7
    for a, b in zip(alone, together, strict=True):
        assert {k: v for k, v in b.items() if v is None} == {
            k: v for k, v in a.items() if v is None
        }
        for name, value in a.items():
            if value is not None:
                assert b[name] == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_runs_train_alike_on_one_and_two_processes(one, tmp_path):
    """Validation sets that do not divide, the best weights, sheets of the main process."""
    first, second = launched(SCRIPT, tmp_path, tmp_path, *OTHERS)
    assert first == second
    for what in OTHERS:
        assert_alike(first[what], getattr(one, what)(tmp_path / "alone" / what))


def test_one_process_reports_for_all(one, two, tmp_path):
    """Speeds count the images of all processes; lines, events and checkpoints are written once."""
    alone = one.reports(tmp_path)
    first, second = (rank["reports"] for rank in two[1])
    assert first == second == alone | {"batch": 8}
    assert alone["batch"] == 16
    assert alone["checkpoints"] == ["step-00000003", "step-00000006"]
    expected = {"images_per_second": 16, "tokens_per_second": 48}
    assert alone["log"] == [{"step": s, "seconds_left": 6 - s} | expected for s in (2, 4, 6)]
    assert (two[0] / "stderr").read_text().count("points: 50 images, 1 classes") == 1
