"""Cards say what is in the folder, as valid Hub metadata, and claim nothing else."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from builders import build_scheme
from codeclade import bundled
from codeclade.checkpoints.papers import PAPERS
from codeclade.hub.card import check_front_matter, describe_map, render_card
from codeclade.hub.push import prepare
from codeclade.hub.repository import read_repository

ROOT = Path(__file__).parents[2]
RESULT = {
    "metric": "Class accuracy",
    "value": 14.5,
    "unit": " %",
    "dataset": "Tiny ImageNet",
    "dataset_id": "zh-plus/tiny-imagenet",
    "split": "validation",
    "protocol": "EfficientNet-Lite0, 256 images, guidance 3, seed 0",
}


RECORD = {"stage": "g", "data": "zh-plus/tiny-imagenet", "images": 1, "classes": 1, "steps": 1}
RECORD |= {"seconds": 1, "machine": "m", "logged": {}}


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    tiny_pipeline("cluster", guidance_scale=2.5).save_pretrained(tmp_path)
    return tmp_path


def card(folder, repo_id: str = "user/tiny", license: str | None = None) -> ModelCard:
    return ModelCard(render_card(read_repository(folder), repo_id, license))


def test_a_bare_pipeline_claims_nothing(saved):
    found = card(saved)
    data = found.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert {"codeclade", "masc", "cluster"} <= set(data["tags"])
    assert "license" not in data and "model-index" not in data and "datasets" not in data
    assert "Nothing was measured for this repository." in found.text
    assert "No license was stated" in found.text
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
    with pytest.raises(ValueError, match=r"evaluation\.json: protocol must be text, got ''"):
        card(saved)


def test_training_and_provenance_are_told(saved):
    training = {
        "stage": "generator",
        "data": "zh-plus/tiny-imagenet",
        "images": 8000,
        "classes": 16,
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
    words = "Generator: trained on 8,000 images of 16 classes from zh-plus/tiny-imagenet, "
    words += "4,600 steps in 51 "
    assert f"{words}minutes, 1 x x86_64 (cpu), torch 2.13.0." in found.text
    block = found.text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == training["recipe"]
    assert "validation loss 4.823" in found.text
    assert "- DCPE-B.pt (1,234,567 bytes)" in found.text
    assert found.data.license == "mit" and found.data.datasets == [
        "ILSVRC/imagenet-1k",
        "zh-plus/tiny-imagenet",
    ]
    assert "dcpe" in found.data.tags
    assert card(saved, license="apache-2.0").data.license == "apache-2.0"


def test_recipes_of_all_stages_without_what_is_unset(saved):
    unset = {"scheme": "", "classes": [], "learning_rate": 0.5}
    (saved / "training.json").write_text(json.dumps(RECORD | {"recipe": unset}))
    tokenizer = {"stage": "tokenizer", "recipe": {"codebook_size": 1024}}
    (saved / "vq_model" / "training.json").write_text(json.dumps(RECORD | tokenizer))
    text = card(saved).text
    blocks = [yaml.safe_load(one.split("```")[0]) for one in text.split("```yaml\n")[1:]]
    assert blocks == [{"learning_rate": 0.5}, {"codebook_size": 1024}]
    assert "Tokenizer: trained on" in text and "Recipe of the tokenizer" in text


def test_the_package_is_cited_as_its_citation_file_says(saved):
    entry = card(saved).text.split("@software{codeclade,")[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"title = {{{citation['title']}}}" in entry
    assert f"author = {{{{{citation['authors'][0]['name']}}}}}" in entry


def test_text_from_files_stays_text(saved):
    path = saved / "model_index.json"
    index = json.loads(path.read_text())
    index["id2label"] = {
        "0": 'x").images; __import__("os").system("id"); print("',
        "1": "<img src=x onerror=alert(1)> [free](http://evil.example)",
        "2": "a\n```\n# Pwned\n---\nlicense: mit\n---",
        "3": "crane",
        "4": "crane",
    }
    path.write_text(json.dumps(index))
    (saved / "evaluation.json").write_text(json.dumps([RESULT | {"protocol": "a | b\n# c"}]))
    found = card(saved)
    lines = found.text.split("```python\n")[1].split("```")[0]
    assert "__import__" not in lines and "image = pipe(0).images[0]" in lines
    assert "<img" not in found.text and "[free]" not in found.text
    assert "\n# Pwned" not in found.text and "license" not in found.data.to_dict()
    assert r"| a \| b \# c |" in found.text
    titles = [line for line in found.text.splitlines() if line.startswith("# ")]
    assert titles == ["# tiny"]


def test_the_call_names_the_first_clear_class(saved):
    path = saved / "model_index.json"
    index = json.loads(path.read_text())
    names = {"2": "tabby, cat", "10": "lion", "0": "crane", "1": "crane"}
    path.write_text(json.dumps(index | {"id2label": names}))
    text = card(saved).text
    assert 'image = pipe("tabby").images[0]' in text
    assert "Classes (4): crane, crane, tabby, lion." in text


def test_recipes_cannot_close_their_block(saved):
    recipe = {"note": "```\n# out\n````"}
    record = RECORD
    (saved / "training.json").write_text(json.dumps(record | {"recipe": recipe}))
    text = card(saved).text
    assert yaml.safe_load(text.split("`````yaml\n")[1].split("\n`````")[0]) == recipe


def test_data_sets_and_licenses_of_the_hub(saved):
    record = RECORD
    (saved / "training.json").write_text(json.dumps(record | {"recipe": {}}))
    provenance = {"license": "other", "license_name": "own", "license_link": "https://x.y/z"}
    (saved / "provenance.json").write_text(json.dumps(provenance))
    data = card(saved).data.to_dict()
    assert data["datasets"] == ["zh-plus/tiny-imagenet"]
    assert (data["license"], data["license_name"]) == ("other", "own")
    assert data["license_link"] == "https://x.y/z"
    data = card(saved, license="mit").data.to_dict()
    assert data["license"] == "mit" and "license_name" not in data
    (saved / "evaluation.json").write_text(json.dumps([RESULT | {"value": 0}]))
    (result,) = card(saved).data.eval_results
    assert (result.metric_value, result.dataset_split) == (0, "validation")


@pytest.mark.parametrize("license", ["other", "my own", "MIT license", ""])
def test_license_names_are_the_hubs(saved, license):
    with pytest.raises(ValueError, match="is none of the Hub's names"):
        prepare(saved, "user/tiny", license)


def test_two_stage_schemes_are_described(tmp_path):
    build_scheme("semantic_detail").save_pretrained(tmp_path)
    found = card(tmp_path)
    assert PAPERS["iar2"][3] in found.text and PAPERS["masc"][3] not in found.text
    assert "pairs of a semantic and a detail code" in found.text
    assert "semantic_detail" in found.data.tags


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
    library = "transformers" if part == "transformer" else "codeclade"
    assert found.data.library_name == library


@pytest.mark.parametrize("block", ["a: [1", "- 1\n- 2", "just words"])
def test_bad_metadata_is_refused(block):
    with pytest.raises(ValueError, match="has no end"):
        check_front_matter("---\na: 1\n# X\n", "README.md")
    assert check_front_matter("---\n---\n# X\n", "README.md") == {}
    with pytest.raises(ValueError, match=r"the metadata of README\.md"):
        check_front_matter(f"---\n{block}\n---\n# X\n", "README.md")
    assert check_front_matter("# no metadata", "README.md") == {}
