"""Sharded models (FSDP2): the steps of one process, and launches that training refuses."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import shared_runs
from builders import build_vq
from codeclade.data.codes import Codes
from codeclade.training.generator import GeneratorTraining
from codeclade.training.sharding import check_launch, even_batches
from codeclade.training.tokenizer import train_tokenizer
from codeclade.training.tokenizer_recipe import TokenizerRecipe
from generator_runs import write_codes
from shared_runs import LIVELY_RUNS, SCRIPT, STEADY, STEADY_RUNS, assert_alike, launched


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_runs_take_the_steps_of_one_process(tmp_path):
    """Growth, low rank, captions, refiners: trained, validated, drawn, stopped and gone on with."""
    first, second = launched(SCRIPT, tmp_path / "two", "shards", tmp_path / "two", *STEADY_RUNS)
    assert first == second
    for name, run in STEADY_RUNS.items():
        assert_alike(first[name], run(tmp_path / "one" / name))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_draw_and_learn_as_copies_do(tmp_path):
    """Dropout, drop-path, noise, priors, checkpointing, and one held-out image for two."""
    found = {}
    for way in ("copies", "shards"):
        folder = tmp_path / way
        found[way], other = launched(SCRIPT, folder, way, folder, *LIVELY_RUNS)
        assert found[way] == other
    for name in LIVELY_RUNS:
        assert_alike(found["shards"][name], found["copies"][name], tolerance=1e-3)


def test_processes_get_equally_many_batches(tmp_path):
    """Of five images in shards of one and four, a third process has one."""
    codes = Codes(write_codes(tmp_path, build_vq()) / "train")
    codes.shards = [codes.shards[0][:1], codes.shards[0][1:5]]
    codes.ends, codes.labels = [1, 5], codes.labels[:5]
    shares = [list(codes.first_views(1, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 1, 1]
    assert all(len(ids) == 1 for share in shares for ids, _ in share)
    # Here other processes are asked as often as the longest share goes.
    asked = iter([3, 1, 1, 0])
    third = SimpleNamespace(
        process_index=2, num_processes=3, device="cpu",
        reduce=lambda values, way: torch.full_like(values, next(asked)),
    )  # fmt: skip
    found = list(even_batches(codes, 1, third))
    assert [counts for _, counts in found] == [True, False, False]
    assert torch.equal(found[0][0][0], shares[2][0][0])
    assert torch.equal(found[1][0][0], shares[0][0][0])
    assert [counts for _, counts in even_batches(codes, 4, None)] == [True, True]


@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_captions_without_dropout_leave_the_empty_caption_alone(tmp_path, dropped):
    """A weight that no step uses gets no gradient, for which DDP would wait."""
    vq_model = build_vq()
    codes = write_codes(tmp_path, vq_model)
    shared_runs.write_features(codes, {"train": 32, "validation": 4})
    recipe = replace(STEADY, condition="text", class_dropout=dropped)
    model = GeneratorTraining(recipe, codes, vq_model, None).objective().model
    assert model.prefix.null.requires_grad == bool(dropped)


def test_launches_that_do_not_fit_are_refused(tmp_path):
    refused = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"accelerate launched DEEPSPEED; training works with"):
        check_launch(refused)
    grid = SimpleNamespace(non_data_parallel_size=2)
    kind = DistributedType.MULTI_GPU
    with pytest.raises(ValueError, match="launched 2 processes that share every image"):
        check_launch(SimpleNamespace(distributed_type=kind, parallelism_config=grid))
    shared_runs.shard_models(version=1)
    with pytest.raises(ValueError, match="launched FSDP of version 1; launch with --fsdp_version"):
        check_launch(Accelerator())


def test_a_tokenizer_is_not_sharded(tmp_path):
    shared_runs.shard_models()
    recipe = TokenizerRecipe(data="none", image_size=32, perceptual="none", mixed_precision="no")
    with pytest.raises(ValueError, match="FSDP, but a tokenizer is trained whole on every process"):
        train_tokenizer(recipe, tmp_path / "run")
