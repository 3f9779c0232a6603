"""hub_configs/: every recipe loads, describes the published model, and its table is current."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin

from codeclade import ClusterMap, CodecladeConfig, Refiner, RefinerConfig, VQModel, bundled
from codeclade.checkpoints import dcpe, iar, iar2, llamagen
from codeclade.checkpoints.family import OTHER_GUIDANCE
from codeclade.cli import build_parser, main
from codeclade.cli.cluster import ClusterRecipe, read_recipe
from codeclade.cli.recipe_table import convert_commands, describe, model_table
from codeclade.cli.settings import READERS, method_settings, recipe_class, settings_page
from codeclade.clustering import make
from codeclade.components.guidance import Schedule
from codeclade.data import families
from codeclade.data.component_configs import build, component_configs, count_parameters
from codeclade.data.families import family_names, read_family, recipes_folder
from codeclade.data.recipes import load_recipe, settings
from codeclade.training.generator import generator_config
from codeclade.training.refiner import refiner_config

ROOT = Path(__file__).parent.parent
IMAGES = 1_281_167

# Parameters of the generator; millions to one decimal where only those are published.
PARAMETERS = {
    ("llamagen", "b"): 110_888_448,
    ("llamagen", "l"): 342_910_976,
    ("llamagen", "xl"): 774_699_520,
    ("llamagen", "xxl"): 1_410_972_672,
    ("llamagen", "3b"): 3_096_659_200,
    ("llamagen", "1b"): 1_199_616_000,
    ("llamagen", "7b"): 6_614_589_440,
    ("llamagen", "xxxl"): 3_893_027_840,
    ("llamagen", "b-256"): 110_888_448,
    ("llamagen", "l-256"): 342_910_976,
    ("llamagen", "xl-256"): 774_699_520,
    ("llamagen-t2i", "xl-256"): 777_678_080 + 120 * 2048,  # with the learned empty caption
    ("llamagen-t2i", "xl-512"): 777_678_080 + 120 * 2048,
    ("masc", "b"): 98.3,
    ("masc", "l"): 326.1,
    ("masc", "xl"): 753.7,
    ("dcpe", "b"): 98.3,
    ("dcpe", "l"): 326.1,
    ("dcpe", "xl"): 753.7,
    ("ctf", "b"): 86.5,
    ("ctf", "l"): 310.4,
    ("ctf", "xl"): 734.1,
    ("iar", "b"): 110_888_448,
    ("iar", "l"): 342_910_976,
    ("iar", "xl"): 774_699_520,
    ("iar", "xxl"): 1_410_972_672,
    ("iar2", "b"): 143.1,
    ("iar2", "l"): 408.2,
    ("iar2", "xl"): 884.3,
    ("iar2", "xxl"): 1570.1,
}
LARGE = sorted(PARAMETERS)
FAMILIES = {name: read_family(name) for name in family_names()}
ALL = [(name, size) for name, family in FAMILIES.items() for size in family.sizes or [None]]


def cluster_recipe(name: str, size: str | None, *words: str) -> tuple[ClusterRecipe, dict]:
    """What `codeclade cluster` makes of a recipe."""
    given = ["cluster", "x.npy", "--recipe", name, "--out", "map", *words]
    given += ["--size", size] if size else []
    return read_recipe(build_parser().parse_args(given))


def read(name: str, size: str | None, section: str):
    if section == "cluster":
        return cluster_recipe(name, size)[0]
    return load_recipe(recipe_class(section), section, name, size=size)


def pixels(name: str, size: str) -> int:
    """The side a published file names, or 256 for the methods and 384 for the others."""
    number = re.search(r"-(\d+)$", size)
    return int(number[1]) if number else 384 if name in ("llamagen", "iar", "iar2") else 256


def test_every_published_model_has_a_size_of_a_recipe():
    assert {pair for pair in ALL if pair[1]} == set(PARAMETERS)
    ours = [pair[0] for pair in ALL if not pair[1]]
    assert ours == [
        "small",
        "tiny-imagenet",
        "tiny-imagenet-masc",
        "tiny-imagenet-pairs",
    ]
    assert len(list((ROOT / "hub_configs").rglob("*"))) <= 13


@pytest.mark.parametrize("name", FAMILIES)
def test_every_section_is_read_by_one_command_in_every_size(name, capsys):
    family = FAMILIES[name]
    assert set(family.sections) <= set(READERS)
    assert {"tokenizer", "encode", "generator"} <= set(family.sections)
    for size in family.sizes or [None]:
        for section in family.sections:
            assert read(name, size, section) is not None
    comment = family.path.read_text().splitlines()[0]
    assert comment.startswith("# ")


@pytest.mark.parametrize(("name", "size"), LARGE)
def test_parameters_are_the_published_ones(name, size):
    found = count_parameters("transformer", component_configs(FAMILIES[name], size)["transformer"])
    expected = PARAMETERS[name, size]
    assert (round(found / 1e6, 1) if isinstance(expected, float) else found) == expected


@pytest.mark.parametrize(("name", "size"), LARGE)
def test_parts_fit_together(name, size):
    configs = component_configs(FAMILIES[name], size)
    transformer, vq_model = configs["transformer"], configs["vq_model"]
    assert transformer["grid_size"] * 16 == pixels(name, size)
    scheme = {"masc": "cluster", "dcpe": "cluster", "ctf": "cluster", "iar2": "semantic_detail"}
    assert transformer["scheme"] == scheme.get(name, "token")
    if name == "iar2":
        assert (vq_model["codebook_size"], vq_model["detail_codebook_size"]) == (256, 4096)
        assert (transformer["coarse_vocab_size"], transformer["vocab_size"]) == (256, 4096)
    else:
        assert (vq_model["codebook_size"], vq_model["detail_codebook_size"]) == (16384, None)
    clusters = {"masc": 8192, "dcpe": 8192, "ctf": 512, "iar": 128}.get(name)
    assert ("cluster_map" in configs) == (clusters is not None)
    if clusters:
        assert configs["cluster_map"]["num_clusters"] == clusters
        assert configs["cluster_map"]["codebook_size"] == 16384
    if transformer["scheme"] == "cluster":
        assert transformer["vocab_size"] == clusters


@pytest.mark.parametrize(("name", "parameters"), [("llamagen", 71_883_403), ("iar2", 71_787_147)])
def test_tokenizers_have_the_published_size(name, parameters):
    assert count_parameters("vq_model", component_configs(FAMILIES[name])["vq_model"]) == parameters


def test_iar2s_config_is_that_of_the_published_weights():
    assert component_configs(FAMILIES["iar2"], "b")["transformer"] == {
        "architectures": ["CodecladeTransformer"],
        "model_type": "codeclade",
        "vocab_size": 4096,
        "scheme": "semantic_detail",
        "coarse_vocab_size": 256,
        "grid_size": 24,
        "num_classes": 1000,
        "text_dim": None,
        "prefix_length": 1,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "positions_per_cell": 2,
        "head_layers": 5,
        "head_window": 2,
        "semantic_loss_weight": 1.0,
        "token_dropout": 0.1,
        "residual_dropout": 0.1,
        "feed_forward_dropout": 0.1,
        "class_dropout": 0.1,
        "initializer_range": 0.02,
    }


def training_inputs(configs: dict) -> tuple[SimpleNamespace, SimpleNamespace | None]:
    """What the training functions read of code shards and a cluster map of these components."""
    header = {
        "codebook_size": configs["vq_model"]["codebook_size"],
        "detail_codebook_size": configs["vq_model"]["detail_codebook_size"],
        "grid_size": configs["transformer"]["grid_size"],
        "class_names": list(range(configs["transformer"]["num_classes"])),
    }
    given = configs.get("cluster_map")
    cluster_map = SimpleNamespace(num_clusters=given["num_clusters"]) if given else None
    return SimpleNamespace(header=header), cluster_map


@pytest.mark.parametrize(("name", "size"), [pair for pair in ALL if pair[0] != "llamagen-t2i"])
def test_configs_are_what_training_makes(name, size):
    configs = component_configs(FAMILIES[name], size)
    codes, cluster_map = training_inputs(configs)
    trained = generator_config(read(name, size, "generator"), codes, cluster_map)
    expected = configs["transformer"]
    own = {"architectures", "positions_per_cell"}  # published IAR2 weights share angles
    assert {key: getattr(trained, key) for key in expected if key not in own} == {
        key: value for key, value in expected.items() if key not in own
    }
    if "refiner" in configs:
        lends = None
        if configs["refiner"]["context_dim"]:
            lends = SimpleNamespace(config=SimpleNamespace(hidden_size=expected["hidden_size"]))
        trained = refiner_config(read(name, size, "refiner"), codes, cluster_map, lends)
        for key, value in configs["refiner"].items():
            assert key == "architectures" or getattr(trained, key) == value, key


@pytest.mark.parametrize(("name", "millions"), [("dcpe", 26.7), ("ctf", 326.7)])
def test_refiners_have_the_size_of_their_recipe(name, millions):
    config = component_configs(FAMILIES[name])["refiner"]
    assert round(count_parameters("refiner", config) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("recipe", "version"),
    [("tiny-imagenet-pairs", ""), ("tiny-imagenet", "ids"), ("tiny-imagenet-masc", "0.1")],
)
def test_the_bundled_pipelines_are_those_their_recipes_describe(recipe, version):
    configs = component_configs(FAMILIES[recipe])
    for name, config in configs.items():
        there = json.loads((Path(bundled(version)) / name / "config.json").read_text())
        assert {key: there[key] for key in config} == config, name
    index = json.loads((Path(bundled(version)) / "model_index.json").read_text())
    generator = read(recipe, None, "generator")
    for name in ("guidance_scale", "temperature", "top_k", "top_p", "guidance_schedule"):
        assert index[name] == getattr(generator, name), name


@pytest.mark.parametrize("method", ["masc", "dcpe", "kmeans", "balanced", "random"])
def test_the_number_of_merges_is_that_of_the_method(method):
    """`component_configs` says it without clustering."""
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).numpy()
    found = make(method, n_clusters=4).fit(rows)
    family = read_family("masc")
    family.content["cluster"]["method"] = method
    assert component_configs(family)["cluster_map"]["num_merges"] == (
        16383 if hasattr(found, "children_") else 0
    )


@pytest.mark.parametrize(("name", "size"), LARGE)
def test_recipes_are_of_imagenet_and_300_epochs(name, size):
    generator, encode = read(name, size, "generator"), read(name, size, "encode")
    assert generator.steps == pytest.approx(300 * IMAGES / generator.batch_size, abs=1)
    assert (encode.data, encode.views, encode.crop) == ("ILSVRC/imagenet-1k", 10, 1.1)
    assert read(name, size, "tokenizer").steps == pytest.approx(40 * IMAGES / 128, abs=1)


@pytest.mark.parametrize(("name", "size"), LARGE)
def test_sampling_defaults_are_those_of_the_converter(name, size):
    recipe = read(name, size, "generator")
    schedule, top_k = None, 0
    if name == "llamagen-t2i":
        expected, top_k = llamagen.TEXT_SAMPLING["guidance_scale"], 1000
    elif name == "iar2":
        expected = iar2.SAMPLING["guidance_scale"]
        schedule = iar2.SAMPLING["guidance_schedule"]
    elif name in ("masc", "ctf"):
        expected = 2.0
    else:
        known = {"llamagen": llamagen, "dcpe": dcpe, "iar": iar}[name].GUIDANCE
        expected = known.get(recipe.hidden_size, OTHER_GUIDANCE)
    assert (recipe.guidance_scale, recipe.top_k, recipe.top_p) == (expected, top_k, 1.0)
    assert recipe.guidance_schedule == schedule and Schedule(recipe.guidance_schedule)
    assert recipe.temperature == (1.1 if name == "ctf" else 1.0)


def test_learning_rates_and_batches_are_the_published_ones():
    def rates(name, size="b"):
        recipe = read(name, size, "generator")
        return recipe.learning_rate, recipe.final_learning_rate, recipe.batch_size

    for name in ("llamagen", "dcpe", "ctf", "iar"):
        assert rates(name) == (1e-4, 1e-4, 256)
    assert rates("masc") == rates("masc", "l") == (1e-4, 1e-5, 256)
    assert rates("masc", "xl") == (2e-4, 2e-5, 512)
    assert rates("iar2") == (1.5e-4, 5e-5, 256)
    assert read("iar", "b", "generator").cluster_loss_weight == 1.0


def test_the_clusters_of_ctf_are_kmeans_with_ten_restarts_of_unit_rows():
    recipe, options = cluster_recipe("ctf", "xl")
    assert recipe == ClusterRecipe(512, "kmeans", normalize=True)
    assert options == {"init": "k-means++", "n_init": 10}
    config = component_configs(FAMILIES["ctf"])["cluster_map"]
    assert (config["method"], config["num_merges"]) == ("kmeans-normalized", 0)


def test_the_table_in_the_readme_is_the_one_made_from_the_recipes():
    text = (ROOT / "hub_configs" / "README.md").read_text()
    assert model_table() in text, "codeclade recipes --table"
    row = next(line for line in text.splitlines() if line.startswith("| [iar2](iar2.yaml) | xxl"))
    assert "FID 1.76" in row and "1.50 in the paper, reached with rejection sampling" in row


def test_conversion_commands_parse_and_name_every_published_generator():
    commands = [one for family in FAMILIES.values() for one in convert_commands(family)]
    words = [shlex.split(command)[1:] for command in commands]
    files = {build_parser().parse_args(one).gpt for one in words}
    assert len(commands) == len(files) == 16
    assert {"c2i_B_256.pt", "c2i_3B_384.pt", "t2i_XL_stage2_512.pt", "IAR2-XL.pt"} <= files


def test_the_settings_page_is_current():
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_page(), "codeclade recipes --settings > docs/settings.md"


@pytest.mark.parametrize("section", READERS)
def test_every_setting_says_what_it_means(section):
    undescribed = [one.name for one in settings(recipe_class(section)) if not one.meaning]
    assert not undescribed


@pytest.mark.parametrize("method", method_settings())
def test_every_setting_of_a_method_says_what_it_means(method):
    assert all(one.meaning for one in method_settings()[method])


def test_recipes_are_listed_shown_and_copied(tmp_path, capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == family_names()
    assert "Sizes b, l, xl." in listed
    assert main(["recipes", "iar2"]) == 0
    shown = capsys.readouterr().out
    assert shown == describe(FAMILIES["iar2"]) + "\n"
    assert main(["recipes", "small"]) == 0
    assert "\n\n\n" not in (small := capsys.readouterr().out) and "published: ;" not in small
    assert "143,111,616 parameters" in shown and "--gpt IAR2-XXL.pth" in shown
    assert main(["recipes", "masc", "--out", str(tmp_path / "own.yaml")]) == 0
    assert (tmp_path / "own.yaml").read_text() == FAMILIES["masc"].path.read_text()
    again = read_family(tmp_path / "own.yaml")
    assert component_configs(again, "l") == component_configs(FAMILIES["masc"], "l")


def test_configs_are_written_and_load(tmp_path):
    out = tmp_path / "masc-l"
    assert main(["recipes", "masc", "--size", "l", "--configs", str(out)]) == 0
    expected = component_configs(FAMILIES["masc"], "l")
    for name, config in expected.items():
        assert json.loads((out / name / "config.json").read_text()) == config
    loaded = CodecladeConfig.from_pretrained(out / "transformer")
    assert (loaded.hidden_size, loaded.vocab_size) == (1024, 8192)
    loaded = RefinerConfig.from_pretrained(out / "refiner")
    assert loaded.context_dim == 1024
    with torch.device("meta"):
        assert Refiner(loaded).config.num_clusters == 8192
        for kind, name in ((VQModel, "vq_model"), (ClusterMap, "cluster_map")):
            assert issubclass(kind, ConfigMixin)
            component = kind.from_config(kind.load_config(out / name))
            assert component.config.codebook_size == 16384


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask"], "there is no recipe file mask"),
        (["masc", "--configs", "x", "--size", "q"], "has no size 'q'; it has b, l, xl"),
        (["masc", "--size", "l"], "--size l is for --configs DIR"),
        (["masc", "--table"], "--table and --settings are of all recipes; give no name"),
        (["--out", "x.yaml"], "--out is for one recipe; give its name"),
        (["masc", "--out", "."], "--out . is there already"),
        (["masc", "--out", "no/x.yaml"], "there is no folder no for x.yaml"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_describes_no_model_says_why(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("encode: {image_size: 64}\ngenerator: {}\n")
    with pytest.raises(ValueError, match="has no section tokenizer, so no model follows"):
        component_configs(read_family(path))
    path.write_text("tokenizer: {image_size: 64}\nencode: {}\ngenerator: {}\n")
    with pytest.raises(ValueError, match=r"encode in .* has no image_size"):
        component_configs(read_family(path))
    path.write_text(
        "tokenizer: {image_size: 64}\nencode: {image_size: 64}\ngenerator: {}\nrefiner: {}\n"
    )
    with pytest.raises(ValueError, match="has no section cluster, so no model follows"):
        component_configs(read_family(path))
    whole = FAMILIES["masc"].path.read_text()
    path.write_text(whole.replace("{num_classes: 1000}", "{classes: 1000}"))
    with pytest.raises(ValueError, match="transformer has no field 'classes'; it has vocab_size"):
        component_configs(read_family(path))
    path.write_text(whole.replace("  title: MASC", "  titel: MASC"))
    with pytest.raises(ValueError, match=r"about in .*'titel'"):
        read_family(path).about()


def test_components_are_built_without_memory():
    model = build("transformer", component_configs(FAMILIES["llamagen"], "7b")["transformer"])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_recipes_are_found_inside_an_installed_package(tmp_path, monkeypatch):
    assert recipes_folder() == ROOT / "hub_configs"
    monkeypatch.setattr(families, "HERE", tmp_path / "src" / "codeclade")
    with pytest.raises(OSError, match="the recipes are missing"):
        recipes_folder()
    (tmp_path / "src" / "codeclade" / "recipes").mkdir(parents=True)
    assert recipes_folder() == tmp_path / "src" / "codeclade" / "recipes"
