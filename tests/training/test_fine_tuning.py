"""Starting from a trained generator, and what a generator's run can be asked for besides."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from builders import NAMES, build_map, build_scheme, build_transformer, build_vq
from codeclade import CodecladeConfig, CodecladePipeline, CodecladeTransformer
from codeclade.training.generator import GeneratorRecipe, train_generator
from codeclade.training.initialization import initialize, load_source
from generator_runs import RECIPE, write_codes


def saved(pipe: CodecladePipeline, folder) -> str:
    pipe.save_pretrained(folder)
    return str(folder)


def fresh(**changes) -> CodecladeTransformer:
    torch.manual_seed(1)
    fields = build_transformer(**changes).config.to_diff_dict()
    return CodecladeTransformer(CodecladeConfig(**fields)).eval()


def test_the_same_classes_and_codes_keep_the_function(tmp_path):
    pipe = build_scheme("token")
    model = fresh()
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    said = initialize(model, source, list(NAMES.values()), pipe.vq_model, None)
    # Two classes are named "crane": neither can be told from its name.
    assert said == [
        "3 of 5 class rows kept by name; crane, crane start as the null class",
        "all 32 rows of ids or clusters kept",
    ]
    ids, labels = torch.randint(32, (2, 15)), torch.tensor([0, 2])
    before = pipe.transformer(ids, labels).logits
    torch.testing.assert_close(model(ids, labels).logits, before, rtol=0, atol=1e-5)


def test_other_classes_are_found_by_name_and_the_rest_starts_as_the_null_class(tmp_path):
    pipe = build_scheme("token")
    names = ["Goldfish", "zebra", "tabby", "golden retriever", "axolotl", "quokka", "newt"]
    model = fresh(num_classes=7)
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    said = initialize(model, source, names, pipe.vq_model, None)
    assert said[0] == (
        "3 of 7 class rows kept by name; zebra, axolotl, quokka, newt start as the null class"
    )
    old, new = pipe.transformer.prefix.embedding.weight, model.prefix.embedding.weight
    for row, expected in enumerate([0, 5, 1, 2, 5, 5, 5, 5]):
        assert torch.equal(new[row], old[expected])


def test_another_grid_keeps_every_weight(tmp_path):
    pipe = build_scheme("token")
    model = fresh(grid_size=6)
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    said = initialize(model, source, list(NAMES.values()), pipe.vq_model, None)
    assert said[-1] == "grid 4 becomes 6: rotary positions have no weights"
    assert torch.equal(model.head.weight, pipe.transformer.head.weight)
    assert model(torch.randint(32, (1, 35)), torch.tensor([0])).logits.isfinite().all()


def test_rows_of_another_vocabulary_go_by_codes(tmp_path):
    pipe = build_scheme("cluster")
    fine = build_map(pipe.vq_model.codebook, 20)
    model = fresh(scheme="cluster", vocab_size=20)
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    said = initialize(model, source, list(NAMES.values()), pipe.vq_model, fine)
    # A cut of the same tree splits clusters: every part has the row of the cluster it came from.
    assert "20 of 20 rows of ids or clusters kept from one old row, 0 are means of several" in said
    coarse, old = pipe.cluster_map.mapping, pipe.transformer.token_embedding.weight
    for code in range(32):
        row = model.token_embedding.weight[fine.mapping[code]]
        torch.testing.assert_close(row, old[coarse[code]])

    # Ids to clusters: the mean over a cluster's codes.
    pipe = build_scheme("token")
    model = fresh(scheme="cluster", vocab_size=20)
    source = load_source(saved(pipe, tmp_path / "q"), model.config)
    initialize(model, source, list(NAMES.values()), pipe.vq_model, fine)
    inside = pipe.transformer.head.weight[fine.mapping == fine.mapping[0]]
    torch.testing.assert_close(model.head.weight[fine.mapping[0]], inside.mean(0))


def test_another_codebook_starts_the_rows_anew(tmp_path):
    pipe = build_scheme("token")
    model = fresh()
    before = model.token_embedding.weight.clone()
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    said = initialize(model, source, list(NAMES.values()), build_vq(seed=3), None)
    assert said[1] == "another codebook: all rows of ids or clusters start anew"
    assert torch.equal(model.token_embedding.weight, before)
    assert torch.equal(
        model.layers[0].attention.qkv.weight, source.transformer.layers[0].attention.qkv.weight
    )


@pytest.mark.parametrize("scheme", ["cluster_token", "semantic_detail"])
def test_schemes_of_two_stages_keep_their_weights(tmp_path, scheme):
    pipe = build_scheme(scheme)
    model = CodecladeTransformer(CodecladeConfig(**pipe.transformer.config.to_diff_dict()))
    source = load_source(saved(pipe, tmp_path / "p"), model.config)
    initialize(model, source, list(NAMES.values()), pipe.vq_model, pipe.cluster_map)
    for name, value in pipe.transformer.state_dict().items():
        if name != "prefix.embedding.weight" and not name.endswith("cluster_of"):
            assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 48}, "is of another size; set hidden_size=32"),
        (
            {"scheme": "cluster_token", "coarse_vocab_size": 12},
            "has scheme 'token', which cannot become 'cluster_token'; token and cluster can",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_refused(tmp_path, changes, words):
    folder = saved(build_scheme("token"), tmp_path / "p")
    with pytest.raises(ValueError, match=words):
        load_source(folder, fresh(**changes).config)


@pytest.mark.parametrize("prior", ["none", "context"])
def test_a_fine_tuning_run_starts_at_the_sources_loss(tmp_path, capsys, prior):
    """Also with an embedding prior, which then starts as the function that the source is."""
    pipe = build_scheme("token")
    folder = saved(pipe, tmp_path / "source")
    codes = write_codes(tmp_path / "codes", pipe.vq_model)
    recipe = replace(
        RECIPE, init_from=folder, dropout=0.0, class_dropout=0.0, embedding_prior=prior
    )
    recipe = replace(recipe, batch_size=32, steps=1)
    train_generator(recipe, codes, pipe.vq_model, None, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    from codeclade.data.codes import Codes

    train = Codes(codes / "train")
    tokens, null = train.ids[:, 0].long(), torch.full((32,), 5)  # classes a..e have no rows
    expected = pipe.transformer(tokens[:, :-1], null, labels=tokens).loss.item()
    assert lines[1]["loss"] == pytest.approx(expected, abs=1e-4)
    assert "init_from: 0 of 5 class rows kept by name" in capsys.readouterr().err


def run(tmp_path, name: str, **changes) -> tuple[list[float], CodecladePipeline]:
    vq_model = build_vq()
    if not (tmp_path / "codes").exists():
        write_codes(tmp_path / "codes", vq_model)
    recipe: GeneratorRecipe = replace(RECIPE, **changes)
    pipe = train_generator(recipe, tmp_path / "codes", vq_model, None, tmp_path / name)
    lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"loss"' in line], pipe


def test_sample_sheets_come_from_fixed_seeds_and_change_no_step(tmp_path):
    plain, _ = run(tmp_path, "plain", embedding_prior="tree")
    sampled, _ = run(tmp_path, "sampled", embedding_prior="tree", sample_every=1)
    assert sampled == plain
    names = sorted(path.name for path in (tmp_path / "sampled" / "samples").iterdir())
    assert names == [f"step-{step:08d}.png" for step in (1, 2, 3)]
    run(tmp_path, "again", embedding_prior="tree", sample_every=3)
    sheets = [
        Image.open(tmp_path / name / "samples" / "step-00000003.png").tobytes()
        for name in ("sampled", "again")
    ]
    assert sheets[0] == sheets[1]


def test_gradient_checkpointing_changes_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("codeclade.training.objective.ALIGNMENT_WIDTH", 64)
    plain, _ = run(tmp_path, "plain", alignment_weight=0.1)
    less, _ = run(tmp_path, "less", alignment_weight=0.1, gradient_checkpointing=True)
    assert less == pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
def test_compiled_blocks_have_the_same_losses(tmp_path):
    settings = {"dropout": 0.0, "class_dropout": 0.0, "num_hidden_layers": 1}
    plain, _ = run(tmp_path, "plain", **settings)
    compiled, pipe = run(tmp_path, "compiled", compile=True, **settings)
    assert compiled == pytest.approx(plain, abs=1e-4)
    loaded = CodecladeTransformer.from_pretrained(tmp_path / "compiled/pipeline/transformer")
    assert set(loaded.state_dict()) == set(pipe.transformer.state_dict())


def test_the_best_weights_end_a_generators_run(tmp_path):
    _, pipe = run(tmp_path, "run", use_best=True, embedding_prior="both", evaluate_every=1)
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best["step"] in (1, 2, 3)
    assert pipe.transformer.token_embedding.weight.isfinite().all()


@pytest.mark.parametrize("prior", ["tree", "codebook", "both", "context"])
def test_a_run_with_a_prior_goes_on_from_its_checkpoint(tmp_path, prior):
    _, whole = run(tmp_path, "run", embedding_prior=prior)
    losses, again = run(tmp_path, "run", embedding_prior=prior)
    assert len(losses) == 3  # nothing was left to do
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, again.transformer.state_dict()[name]), name
