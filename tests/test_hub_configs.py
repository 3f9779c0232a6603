"""hub_configs/: every folder is complete, loads, and has the published number of parameters."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from codeclade import ClusterMap, CodecladeConfig, CodecladeTransformer, Refiner, RefinerConfig
from codeclade.clustering import METHODS
from codeclade.components.transformer import SCHEMES
from codeclade.components.vq_model import VQModel
from codeclade.hub import published
from codeclade.training.codes import EncodeRecipe
from codeclade.training.generator import GeneratorRecipe, generator_config
from codeclade.training.refiner import RefinerRecipe, refiner_config
from codeclade.training.run import load_recipe
from codeclade.training.tokenizer import TokenizerRecipe

ROOT = Path(__file__).parent.parent / "hub_configs"
IMAGES = 1_281_167
RECIPES = {
    "tokenizer": TokenizerRecipe,
    "encode": EncodeRecipe,
    "generator": GeneratorRecipe,
    "refiner": RefinerRecipe,
}
LARGE = sorted(p.name for p in ROOT.iterdir() if (p / "transformer").is_dir())
ALL = sorted(p.name for p in ROOT.iterdir() if p.is_dir())

# Exact counts, or millions to one decimal where only those are published.
PARAMETERS = {
    "llamagen-b-384": 110_888_448,
    "llamagen-l-384": 342_910_976,
    "llamagen-xl-384": 774_699_520,
    "llamagen-xxl-384": 1_410_972_672,
    "llamagen-3b-384": 3_096_659_200,
    "llamagen-t2i-xl-256": 777_678_080 + 120 * 2048,  # with the learned empty caption
    "llamagen-t2i-xl-512": 777_678_080 + 120 * 2048,
    "masc-b-256": 98.3,
    "masc-l-256": 326.1,
    "masc-xl-256": 753.7,
    "dcpe-b-256": 98.3,
    "dcpe-l-256": 326.1,
    "dcpe-xl-256": 753.7,
    "ctf-b-256": 86.5,
    "ctf-l-256": 310.4,
    "ctf-xl-256": 734.1,
    "iar-b-384": 110_888_448,
    "iar-l-384": 342_910_976,
    "iar-xl-384": 774_699_520,
    "iar-xxl-384": 1_410_972_672,
    "iar2-b-384": 143.1,
    "iar2-l-384": 408.2,
    "iar2-xl-384": 884.3,
    "iar2-xxl-384": 1570.1,
}


def config_of(name: str) -> CodecladeConfig:
    folder = ROOT / name / "transformer"
    scheme = json.loads((folder / "config.json").read_text())["scheme"]
    if scheme not in SCHEMES:
        pytest.skip(f"the transformer has no scheme {scheme!r} yet")
    return CodecladeConfig.from_pretrained(folder)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta_vq(name: str) -> VQModel:
    fields = VQModel.load_config(ROOT / name / "vq_model")
    if fields.get("detail_codebook_size") and "semantic_detail" not in SCHEMES:
        pytest.skip("VQModel has no detail codebook yet")
    with torch.device("meta"):
        return VQModel.from_config(fields)


def test_every_published_model_has_a_folder():
    assert set(PARAMETERS) == set(LARGE)


@pytest.mark.parametrize("name", LARGE)
def test_parameters_are_the_published_ones(name):
    config = config_of(name)
    with torch.device("meta"):
        found = count(CodecladeTransformer(config))
    expected = PARAMETERS[name]
    assert (round(found / 1e6, 1) if isinstance(expected, float) else found) == expected
    assert f"{found:,} parameters" in (ROOT / name / "card.md").read_text()
    row = next(r for r in (ROOT / "README.md").read_text().splitlines() if f"[{name}]" in r)
    assert f"| {found:,} |" in row


@pytest.mark.parametrize("name", LARGE)
def test_parts_fit_together(name):
    config, vq_model = config_of(name), meta_vq(name)
    codes = vq_model.codebook_size
    pixels = int(name.rsplit("-", 1)[1])
    assert config.grid_size * vq_model.downsample == pixels
    fields = json.loads((ROOT / name / "transformer" / "config.json").read_text())
    assert {key: getattr(config, key) for key in fields if key != "architectures"} == {
        key: value for key, value in fields.items() if key != "architectures"
    }
    if config.scheme == "token":
        assert config.vocab_size == codes
    if config.scheme == "semantic_detail":
        sizes = vq_model.codebook_size, vq_model.config.detail_codebook_size
        assert (config.coarse_vocab_size, config.vocab_size) == sizes == (256, 4096)
    if (ROOT / name / "cluster_map").is_dir():
        cluster_map = ClusterMap.from_config(ClusterMap.load_config(ROOT / name / "cluster_map"))
        assert cluster_map.codebook_size == codes
        if config.scheme == "cluster":
            assert cluster_map.num_clusters == config.vocab_size
    assert (config.scheme == "cluster") <= (ROOT / name / "cluster_map").is_dir()


@pytest.mark.parametrize(
    ("name", "parameters"), [("llamagen-b-384", 71_883_403), ("iar2-b-384", 71_787_147)]
)
def test_tokenizers_have_the_published_size(name, parameters):
    assert count(meta_vq(name)) == parameters
    kind = name.split("-")[0]
    same = [other for other in LARGE if (other.split("-")[0] == "iar2") == (kind == "iar2")]
    contents = {(ROOT / other / "vq_model/config.json").read_text() for other in same}
    assert len(contents) == 1


@pytest.mark.parametrize("name", [n for n in LARGE if (ROOT / n / "refiner").is_dir()])
def test_refiners_are_what_their_recipe_trains(name):
    config = RefinerConfig.from_pretrained(ROOT / name / "refiner")
    cluster_map = ClusterMap.from_config(ClusterMap.load_config(ROOT / name / "cluster_map"))
    recipe = load_recipe(RefinerRecipe, "refiner", ROOT / name / "recipe.yaml", [])
    header = {"codebook_size": 16384, "grid_size": 16, "class_names": list(range(1000))}
    codes = type("Codes", (), {"header": header})
    with torch.device("meta"):
        generator = CodecladeTransformer(config_of(name)) if config.context_dim else None
    trained = refiner_config(recipe, codes, cluster_map, generator)
    fields = json.loads((ROOT / name / "refiner" / "config.json").read_text())
    fields.pop("architectures")
    assert {key: getattr(trained, key) for key in fields} == fields
    with torch.device("meta"):
        millions = round(count(Refiner(config)) / 1e6, 1)
    assert millions == {"dcpe": 26.7, "ctf": 326.7}.get(name.split("-")[0], millions)


def assert_trains(recipe: GeneratorRecipe, config: CodecladeConfig, name: str, clusters) -> None:
    """The recipe trains a generator of this config, but for the angles IAR2's weights share."""
    vq_config = VQModel.load_config(ROOT / name / "vq_model")
    header = {
        "codebook_size": vq_config["codebook_size"],
        "detail_codebook_size": vq_config.get("detail_codebook_size"),
        "grid_size": config.grid_size,
        "class_names": list(range(1000)),
    }
    codes, cluster_map = type("Codes", (), {"header": header}), None
    if clusters:
        cluster_map = ClusterMap.from_config(ClusterMap.load_config(ROOT / name / "cluster_map"))
        assert cluster_map.num_clusters == clusters["clusters"]
    trained = generator_config(recipe, codes, cluster_map)
    fields = json.loads((ROOT / name / "transformer" / "config.json").read_text())
    for key in ("architectures", "positions_per_cell"):
        fields.pop(key, None)
    assert {key: getattr(trained, key) for key in fields} == fields


@pytest.mark.parametrize("name", ALL)
def test_recipes_load_and_agree_with_the_configs(name):
    path = ROOT / name / "recipe.yaml"
    sections = yaml.safe_load(path.read_text())
    assert set(sections) <= {*RECIPES, "cluster"}
    assert {"tokenizer", "encode", "generator"} <= set(sections)
    loaded = {key: load_recipe(RECIPES[key], key, path, []) for key in sections if key in RECIPES}
    if "cluster" in sections:
        assert sections["cluster"]["method"] in METHODS
        assert set(sections["cluster"]) <= {"method", "clusters", "normalize"}
    if name not in LARGE:
        return
    config, generator = config_of(name), loaded["generator"]
    if not config.text_dim:  # those are for sampling only
        assert_trains(generator, config, name, sections.get("cluster"))
    assert loaded["encode"].image_size == config.grid_size * 16
    assert generator.steps == pytest.approx(300 * IMAGES / generator.batch_size, abs=1)
    vq_config = VQModel.load_config(ROOT / name / "vq_model")
    assert loaded["tokenizer"].codebook_size == vq_config["codebook_size"]
    if config.scheme == "cluster":
        assert sections["cluster"]["clusters"] == config.vocab_size


@pytest.mark.parametrize("name", LARGE)
def test_sampling_defaults_are_those_of_the_converter(name):
    method, width = name.split("-")[0], config_of(name).hidden_size
    recipe = load_recipe(GeneratorRecipe, "generator", ROOT / name / "recipe.yaml", [])
    if "t2i" in name:
        expected = published.TEXT_SAMPLING["guidance_scale"]
        assert recipe.top_k == published.TEXT_SAMPLING["top_k"]
    elif method == "iar2":
        expected = published.IAR2_SAMPLING["guidance_scale"]
    elif method in ("masc", "ctf"):
        expected = 2.0
    else:
        expected = getattr(published, f"{method.upper()}_GUIDANCE")[width]
    assert recipe.guidance_scale == expected
    assert recipe.temperature == (1.1 if method == "ctf" else 1.0)


@pytest.mark.parametrize("name", LARGE)
def test_cards_start_with_hub_metadata(name):
    front = yaml.safe_load((ROOT / name / "card.md").read_text().split("---")[1])
    assert front["library_name"] == "diffusers" and "codeclade" in front["tags"]
    expected = {"llamagen": "mit", "dcpe": "mit"}.get(name.split("-")[0], "other")
    assert front["license"] == expected


def test_the_table_has_a_row_for_every_folder():
    text = (ROOT / "README.md").read_text()
    assert sorted(re.findall(r"^\| \[([\w-]+)\]\(\1\)", text, flags=re.M)) == ALL
