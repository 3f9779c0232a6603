"""Cards say what is in the folder, as valid Hub metadata, and claim nothing else."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from codeclade import bundled
from codeclade.hub.card import check_front_matter, describe_map, render_card
from codeclade.hub.citations import PAPERS
from codeclade.hub.repository import read_repository

RESULT = {
    "metric": "Class accuracy",
    "value": 14.5,
    "unit": " %",
    "dataset": "Tiny ImageNet",
    "dataset_id": "zh-plus/tiny-imagenet",
    "split": "validation",
    "protocol": "EfficientNet-Lite0, 256 images, guidance 3, seed 0",
}


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster", guidance_scale=2.5).save_pretrained(tmp_path)
    return tmp_path


def card(folder, repo_id: str = "user/tiny", licence: str | None = None) -> ModelCard:
    return ModelCard(render_card(read_repository(folder), repo_id, licence))


def test_a_bare_pipeline_claims_nothing(saved):
    found = card(saved)
    data = found.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert {"codeclade", "masc", "cluster"} <= set(data["tags"])
    assert "license" not in data and "model-index" not in data and "datasets" not in data
    assert "Nothing was measured for this repository." in found.text
    assert "No licence was stated" in found.text
    assert "## Training" not in found.text and "samples.png" not in found.text


def test_what_is_in_the_folder_is_told(saved, tiny_pipeline):
    text = card(saved).text
    assert 'CodecladePipeline.from_pretrained("user/tiny")' in text
    assert 'pipe("goldfish")' in text and "trust_remote_code=True" in text
    assert "Images of 16 x 16 pixels" in text
    assert "guidance scale 2.5" in text
    assert "Classes (5): goldfish, tabby, golden retriever, crane, crane." in text
    pipe = tiny_pipeline("cluster")
    assert f"{sum(p.numel() for p in pipe.transformer.parameters()):,}" in text
    sizes = pipe.cluster_map.sizes
    assert f"{sizes.min()} to {sizes.max()} members" in text
    assert f"{(sizes == 1).sum()} of one member; with the full merge tree" in text
    assert describe_map(saved / "cluster_map") in text


def test_the_three_lines_of_the_card_run(monkeypatch):
    text = card(bundled(), "user/repo").text
    lines = text.split("```python\n")[1].split("```")[0].replace('"user/repo"', repr(bundled()))
    names = {}
    exec(lines, names)
    assert names["image"].size == (64, 64)


def test_numbers_come_with_their_protocol(saved):
    (saved / "evaluation.json").write_text(json.dumps([RESULT]))
    found = card(saved)
    (result,) = found.data.eval_results
    assert (result.metric_value, result.dataset_type) == (14.5, "zh-plus/tiny-imagenet")
    assert RESULT["protocol"] in result.metric_name
    assert f"| Class accuracy | 14.5 % | Tiny ImageNet | {RESULT['protocol']} |" in found.text
    (saved / "evaluation.json").write_text(json.dumps([RESULT | {"protocol": ""}]))
    with pytest.raises(ValueError, match="a result without protocol"):
        card(saved)


def test_training_and_provenance_are_told(saved):
    training = {
        "stage": "generator",
        "steps": 4600,
        "seconds": 3060.0,
        "machine": "1 x x86_64 (cpu), torch 2.13.0",
        "recipe": {"learning_rate": 0.001, "batch_size": 32},
        "logged": {"validation_loss": 4.8231},
    }
    provenance = {
        "method": "DCPE",
        "license": "mit",
        "statement": "Converted from DCPE's files.",
        "datasets": ["ILSVRC/imagenet-1k"],
        "files": [{"name": "DCPE-B.pt", "bytes": 1234567}],
    }
    (saved / "training.json").write_text(json.dumps(training))
    (saved / "provenance.json").write_text(json.dumps(provenance))
    found = card(saved)
    assert "4,600 steps in 51 minutes, 1 x x86_64 (cpu), torch 2.13.0." in found.text
    block = found.text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == training["recipe"]
    assert "validation loss 4.823" in found.text
    assert "`DCPE-B.pt` (1,234,567 bytes)" in found.text
    assert found.data.license == "mit" and found.data.datasets == ["ILSVRC/imagenet-1k"]
    assert "dcpe" in found.data.tags
    assert card(saved, licence="apache-2.0").data.license == "apache-2.0"


def test_papers_of_the_methods_are_cited(saved, tiny_pipeline, tmp_path):
    text = card(saved).text
    for key, cited in {"llamagen": True, "masc": True, "dcpe": True, "iar2": False}.items():
        assert (PAPERS[key][3] in text) == cited, key
    tiny_pipeline("token").save_pretrained(tmp_path / "token")
    text = card(tmp_path / "token").text
    assert PAPERS["llamagen"][3] in text and PAPERS["masc"][3] not in text


@pytest.mark.parametrize("part", ["vq_model", "cluster_map", "transformer"])
def test_components_have_cards(saved, part):
    found = card(saved / part, "user/part")
    kind = read_repository(saved / part).class_name
    assert f"from codeclade import {kind}" in found.text
    assert f'{kind}.from_pretrained("user/part")' in found.text
    library = "transformers" if part == "transformer" else "diffusers"
    assert found.data.library_name == library


@pytest.mark.parametrize("block", ["a: [1", "- 1\n- 2", "just words"])
def test_bad_metadata_is_refused(block):
    with pytest.raises(ValueError, match=r"the metadata of README\.md"):
        check_front_matter(f"---\n{block}\n---\n# X\n", "README.md")
    assert check_front_matter("# no metadata", "README.md") == {}
