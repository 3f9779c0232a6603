"""Training of a refiner: better than the member draw, resumed bit-equal, with generator states."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from codeclade.components.cluster_map import codebook_sketch
from codeclade.components.refiner import Refiner
from codeclade.training.refiner import RefinerRecipe, train_refiner

CODES, CLUSTERS, CLASSES, TOKENS = 32, 12, 5, 16


def write_codes(folder, vq_model, cluster_map) -> None:
    """Shards whose ids follow from cluster and class, so that a refiner can learn them."""
    generator = torch.Generator().manual_seed(0)
    order, first, sizes = cluster_map._member_table()
    for split, count in (("train", 40), ("validation", 10)):
        clusters = torch.randint(CLUSTERS, (count, 1, TOKENS), generator=generator)
        labels = torch.arange(count) % CLASSES
        ids = order[first[clusters] + labels[:, None, None] % sizes[clusters]]
        (folder / split).mkdir(parents=True)
        shard = {"ids": ids.to(torch.uint16), "labels": labels.int()}
        save_file(shard, folder / split / "codes-00000.safetensors")
        header = {
            "grid_size": 4,
            "codebook_size": CODES,
            "codebook_sketch": codebook_sketch(vq_model.codebook).tolist(),
            "class_names": list("abcde"),
            "shards": ["codes-00000.safetensors"],
        }
        (folder / split / "codes.json").write_text(json.dumps(header))


def tiny_recipe(**changes) -> RefinerRecipe:
    fields = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "causal": False,
        "mask_to_members": True,
        "dropout": 0.0,
        "steps": 60,
        "batch_size": 20,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "ema_decay": 0.8,
        "mixed_precision": "no",
        "tracker": "none",
        "save_every": 30,
        "evaluate_every": 60,
    }
    return RefinerRecipe(**(fields | changes))


def test_training_beats_the_member_draw_and_resumes_bit_equal(tiny_vq, tiny_map, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    out = tmp_path / "run"
    arguments = (tiny_recipe(), tmp_path / "codes", vq_model, cluster_map, out)
    trained = train_refiner(*arguments)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    baseline = log[0]["member_draw_baseline"]
    assert log[-1]["validation_loss"] < 0.5 * baseline
    assert log[-1]["validation_accuracy"] > 0.8
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    shutil.rmtree(out / "checkpoints" / "step-00000060")
    again = train_refiner(*arguments)
    assert all(torch.equal(before[key], value) for key, value in again.state_dict().items())
    saved = Refiner.from_pretrained(out / "refiner")
    assert torch.equal(saved.head.weight, trained.head.weight)


def test_training_with_the_generators_states(tiny_vq, tiny_map, tiny_transformer, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    transformer = tiny_transformer(vocab_size=CLUSTERS, scheme="cluster")
    before = transformer.head.weight.clone()
    refiner = train_refiner(
        tiny_recipe(class_prefix=False, steps=2, gradient_checkpointing=True, use_best=True),
        tmp_path / "codes",
        vq_model,
        cluster_map,
        tmp_path / "run",
        transformer,
    )
    assert refiner.config.context_dim == 32 and refiner.config.num_classes == 0
    assert torch.equal(transformer.head.weight, before)
    with pytest.raises(ValueError, match="the generator predicts 7 tokens, but there are 12"):
        train_refiner(
            tiny_recipe(),
            tmp_path / "codes",
            vq_model,
            cluster_map,
            tmp_path / "other",
            tiny_transformer(vocab_size=7, scheme="cluster"),
        )


@pytest.mark.slow
def test_compiled_blocks_have_the_same_losses(tiny_vq, tiny_map, tmp_path):
    vq_model = tiny_vq()
    cluster_map = tiny_map(vq_model.codebook, CLUSTERS)
    write_codes(tmp_path / "codes", vq_model, cluster_map)
    losses = []
    for compiled in (False, True):
        recipe, out = tiny_recipe(steps=2, compile=compiled), tmp_path / str(compiled)
        train_refiner(recipe, tmp_path / "codes", vq_model, cluster_map, out)
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append(log[-1]["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
