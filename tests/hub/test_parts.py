"""Parts loaded alone by Hub id are checked before they are built, as parts of a folder are."""

import json
import shutil

import pytest
import torch
import transformers
from huggingface_hub import HfApi, constants, hf_api
from safetensors.torch import load, save
from transformers import AutoModel

from builders import build_refiner, build_scheme, build_transformer, build_vq, same
from codeclade import (
    ClusterMap,
    CodecladeConfig,
    CodecladePipeline,
    CodecladeTransformer,
    Refiner,
    RefinerConfig,
    VQModel,
)
from codeclade.components import loading
from codeclade.hub.push import push
from fake_hub.client import head, put
from fresh_loading import fresh

pytest_plugins = "fake_hub.fixtures"

KINDS = {
    "vq_model": VQModel,
    "cluster_map": ClusterMap,
    "transformer": CodecladeTransformer,
    "refiner": Refiner,
}


@pytest.fixture
def hub(hub, monkeypatch, waits):
    """The Hub that pushes go to, for downloads by this process as well."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    return hub


@pytest.fixture
def cache(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


@pytest.fixture(scope="module")
def pipe():
    """A pipeline of all parts."""
    return build_scheme("cluster", refiner=build_refiner())


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def pushed(hub, pipe, files):
    """The pipeline, whose files are at tester/tiny."""
    upload(hub, files)
    hub.log.clear()
    return pipe


def upload(hub, folder, name="tester/tiny") -> None:
    api = HfApi(hub.endpoint, token="hf_tester")
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder)


def change(hub, path: str, edit, name="tester/tiny") -> None:
    """Commit a file of a repository anew, as `edit` makes it of its bytes."""
    file = hub.repository(name).resolve().files[path]
    content = hub.store.path(file.sha256).read_bytes() if file.content is None else file.content
    put(HfApi(hub.endpoint, token="hf_tester"), path, edit(content), name=name)


def with_fields(**fields):
    return lambda content: json.dumps(json.loads(content) | fields).encode()


def with_weight(name: str, edit):
    def edited(content: bytes) -> bytes:
        weights = load(content)
        return save(weights | {name: edit(weights[name]).contiguous()}, {"format": "pt"})

    return edited


@pytest.mark.parametrize("name", KINDS)
def test_every_part_loads_alone(hub, pushed, cache, name, monkeypatch):
    checked = []
    monkeypatch.setattr(loading, "check_component", lambda kind, *rest: checked.append(kind))
    part = KINDS[name].from_pretrained("tester/tiny", subfolder=name, **cache)
    assert same(part, getattr(pushed, name)) and checked == [KINDS[name]]
    # Nothing of other parts is fetched, and no file twice.
    fetched = [line.path for line in hub.requests("GET", "/resolve/")]
    assert fetched and all(f"/{name}/" in path for path in fetched)
    assert len([path for path in fetched if path.endswith("safetensors")]) == 1


def test_shards_variants_and_whole_repositories(hub, cache, tmp_path):
    pipe = build_scheme("semantic_detail").to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    pipe.save_pretrained(tmp_path / "a", variant="bf16")
    upload(hub, tmp_path / "a")
    half = {"torch_dtype": torch.bfloat16, **cache}
    for options in ({}, {"variant": "bf16"}):
        hub.log.clear()
        for name in ("vq_model", "transformer"):
            where = {"subfolder": name, **options}
            part = KINDS[name].from_pretrained("tester/tiny", **where, **half)
            assert same(part, getattr(pipe, name))
        fetched = [one.path for one in hub.requests("GET", "/resolve/")]
        weights = [path for path in fetched if path.endswith(".safetensors")]
        assert weights and all(("bf16" in path) == bool(options) for path in weights)
    build_vq().save_pretrained(tmp_path / "vq")
    upload(hub, tmp_path / "vq", "tester/vq")
    assert same(VQModel.from_pretrained("tester/vq", **cache), build_vq())
    change(hub, "config.json", with_fields(codebook_size=0), name="tester/vq")
    with pytest.raises(ValueError, match=r"^tester/vq/config\.json: codebook_size=0 must be"):
        VQModel.from_pretrained("tester/vq", force_download=True, **cache)
    with pytest.raises(OSError, match=r"holds no weights; a \.fp8\.safetensors file"):
        VQModel.from_pretrained("tester/tiny", subfolder="vq_model", variant="fp8", **cache)


def test_variants_of_two_half_precisions_side_by_side(hub, cache, tmp_path):
    """The config says what was saved last, and of a repository one variant is fetched alone."""
    half = build_scheme("token").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "a")
    other = build_scheme("token").to(torch.float16)
    other.save_pretrained(tmp_path / "a", variant="fp16")
    upload(hub, tmp_path / "a")
    for pipe, kind, variant in ((half, torch.bfloat16, None), (other, torch.float16, "fp16")):
        options = {"variant": variant, "torch_dtype": kind}
        places = {"cache_dir": tmp_path / f"alone {variant}"}
        alone = CodecladeTransformer.from_pretrained(
            "tester/tiny", subfolder="transformer", **options, **places
        )
        whole = CodecladePipeline.from_pretrained("tester/tiny", **options, **cache)
        assert same(alone, pipe.transformer) and same(whole.transformer, pipe.transformer)


BAD = {
    "eps": ("transformer", "config.json", with_fields(rms_norm_eps=-1e-6), "rms_norm_eps=-1e-06"),
    "layers": ("vq_model", "config.json", with_fields(layers_per_block=999), "needs more than"),
    "json": ("refiner", "config.json", lambda content: b"[" * 9000, "is nested too deeply"),
    "kind": ("cluster_map", "config.json", with_fields(_class_name="VQModel"), "this is a VQModel"),
    "nan": (
        "vq_model",
        "diffusion_pytorch_model.safetensors",
        with_weight("quant_conv.bias", lambda old: old * torch.nan),
        r"not finite: quant_conv\.bias, float32",
    ),
    "shape": (
        "transformer",
        "model.safetensors",
        with_weight("norm.weight", lambda old: old[:-1]),
        "mismatched shapes: norm.weight",
    ),
    "whole numbers": (
        "refiner",
        "model.safetensors",
        with_weight("norm.weight", lambda old: old.to(torch.int8)),
        "holds I8, where floating-point",
    ),
    "labels": (
        "cluster_map",
        "diffusion_pytorch_model.safetensors",
        with_weight("mapping", lambda old: old * 0),
        "cluster",
    ),
    "cut": ("vq_model", "diffusion_pytorch_model.safetensors", lambda old: old[:-9], "truncated"),
    "gap": ("transformer", "model.safetensors", lambda old: old + b"0", "after the last tensor"),
}


@pytest.mark.parametrize("bad", BAD)
def test_damaged_parts_are_refused_in_one_sentence(hub, pushed, cache, bad):
    name, file, edit, words = BAD[bad]
    change(hub, f"{name}/{file}", edit)
    with pytest.raises((ValueError, OSError), match=words) as caught:
        KINDS[name].from_pretrained("tester/tiny", subfolder=name, **cache)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_an_index_of_shards_names_nothing_elsewhere(hub, cache, tmp_path):
    build_scheme("token").save_pretrained(tmp_path, max_shard_size="20KB")
    upload(hub, tmp_path)
    index = "transformer/model.safetensors.index.json"
    shards = with_fields(weight_map={"norm.weight": "../vq_model/x.safetensors"})
    change(hub, index, shards)
    with pytest.raises(OSError, match="is no name of a shard"):
        CodecladeTransformer.from_pretrained("tester/tiny", subfolder="transformer", **cache)
    change(hub, index, lambda content: b"{")
    with pytest.raises(OSError, match="is no valid JSON"):
        CodecladeTransformer.from_pretrained("tester/tiny", subfolder="transformer", **cache)


@pytest.mark.parametrize("name", ["vq_model", "transformer"])
def test_a_warm_cache_works_offline(hub, pushed, cache, name, monkeypatch):
    where = {"subfolder": name, **cache}
    with pytest.raises(OSError, match=r"tester/tiny|couldn't connect"):  # cold
        KINDS[name].from_pretrained("tester/tiny", local_files_only=True, **where)
    CodecladePipeline.from_pretrained("tester/tiny", **cache)  # all parts, as pipelines fetch them
    offline = KINDS[name].from_pretrained("tester/tiny", local_files_only=True, **where)
    assert same(offline, getattr(pushed, name))
    KINDS[name].from_pretrained("tester/tiny", **where)  # fills the cache by itself, too
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(KINDS[name].from_pretrained("tester/tiny", **where), getattr(pushed, name))
    assert not hub.log


@pytest.mark.parametrize("name", ["vq_model", "transformer"])
def test_what_is_not_there_is_the_librarys_own_error(hub, pushed, cache, name):
    kind = KINDS[name]
    library = "is not a local folder and is not a valid model identifier"
    with pytest.raises(OSError, match=library):
        kind.from_pretrained("tester/nothing", subfolder=name, **cache)
    with pytest.raises(OSError, match=r"tester/tiny does not appear to have a file named"):
        kind.from_pretrained("tester/tiny", **cache)  # a pipeline, and no subfolder
    with pytest.raises(OSError, match="no-branch"):
        kind.from_pretrained("tester/tiny", subfolder=name, revision="no-branch", **cache)
    assert not [one for one in hub.requests("GET", "safetensors") if one.status == 200]


@pytest.mark.parametrize("name", ["vq_model", "transformer"])
def test_the_commit_that_was_checked_is_loaded(hub, pushed, cache, name, monkeypatch, tmp_path):
    build_scheme("cluster", seed=1, refiner=build_refiner()).save_pretrained(tmp_path / "new")
    before, check = head(hub), loading.check_component

    def check_and_push(*arguments):
        check(*arguments)
        upload(hub, tmp_path / "new")

    where = {"subfolder": name, **cache}
    monkeypatch.setattr(loading, "check_component", check_and_push)
    part = KINDS[name].from_pretrained("tester/tiny", force_download=True, **where)
    assert head(hub) != before and same(part, getattr(pushed, name))
    monkeypatch.setattr(loading, "check_component", check)
    assert not same(KINDS[name].from_pretrained("tester/tiny", **where), part)
    pinned = KINDS[name].from_pretrained("tester/tiny", revision=before, **where)
    assert same(pinned, part)


def test_a_tokenizer_of_the_hub_that_forces_float32(hub, cache, tmp_path):
    vq_model = build_vq(force_upcast=True)
    with torch.no_grad():
        vq_model.post_quant_conv.weight.mul_(1e6)
    vq_model.save_pretrained(tmp_path / "vq")
    upload(hub, tmp_path / "vq", "tester/vq")
    loaded = VQModel.from_pretrained("tester/vq", torch_dtype=torch.float16, **cache)
    assert loaded.dtype == torch.float32 and same(loaded, vq_model)


# A config that is given


@pytest.fixture(params=["folder", "hub"])
def place(request, hub, pushed, files, cache, tmp_path):
    """Source and arguments of the same part in a folder and on the Hub."""
    shutil.copytree(files, tmp_path / "pipe")
    if request.param == "folder":
        return tmp_path / "pipe", {"subfolder": "transformer"}
    return "tester/tiny", {"subfolder": "transformer", **cache}


def test_a_given_config_is_checked_against_the_weights(place, pushed, tmp_path):
    source, where = place
    fields = pushed.transformer.config.to_dict()
    good = CodecladeConfig.from_dict(fields)
    part = CodecladeTransformer.from_pretrained(source, config=good, **where)
    assert same(part, pushed.transformer)
    good.save_pretrained(tmp_path / "config")
    for given in (tmp_path / "config" / "config.json", str(tmp_path / "config" / "config.json")):
        part = CodecladeTransformer.from_pretrained(source, config=given, **where)
        assert same(part, pushed.transformer)
    for changes, words in (
        ({"rms_norm_eps": -1.0}, r"^config: rms_norm_eps=-1\.0 must be"),
        ({"num_hidden_layers": 500}, "num_hidden_layers=500 needs more than"),
        ({"hidden_size": 64}, "mismatched shapes"),
    ):
        bad = CodecladeConfig.from_dict(dict(fields))
        for name, value in changes.items():
            setattr(bad, name, value)
        with pytest.raises(ValueError, match=words) as caught:
            CodecladeTransformer.from_pretrained(source, config=bad, **where)
        assert len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="config is a RefinerConfig; it must be a CodecladeConfig"):
        CodecladeTransformer.from_pretrained(source, config=RefinerConfig(), **where)


def test_auto_model_loads_in_other_precisions_and_refuses(place, hub, pushed, tmp_path):
    source, where = place
    for dtype in (torch.bfloat16, torch.float16, "auto"):
        part = AutoModel.from_pretrained(source, dtype=dtype, **where)
        assert isinstance(part, CodecladeTransformer)
        assert part.dtype == (torch.float32 if dtype == "auto" else dtype)
    file = "transformer/model.safetensors"
    edit = with_weight("norm.weight", lambda old: old[:-1])
    change(hub, file, edit)
    (tmp_path / "pipe" / file).write_bytes(edit((tmp_path / "pipe" / file).read_bytes()))
    with pytest.raises(ValueError, match="mismatched shapes"):
        AutoModel.from_pretrained(source, **where)


def test_a_config_without_the_folders_own(tmp_path):
    model = build_transformer()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert same(CodecladeTransformer.from_pretrained(tmp_path, config=model.config), model)
    model.config.num_attention_heads = 5
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        CodecladeTransformer.from_pretrained(tmp_path, config=model.config)


BARE = """
from importlib.util import find_spec
from transformers import AutoConfig, AutoModel

assert find_spec("codeclade") is None
trusting = {"trust_remote_code": True}
for offline in (False, True):
    for name in ("transformer", "refiner"):
        where = {"subfolder": name, "local_files_only": offline, **trusting}
        part = AutoModel.from_pretrained("tester/tiny", **where)
        values = part.state_dict().values()
        total = round(sum(value.double().abs().sum().item() for value in values), 3)
        print(type(part).__name__, type(part).__module__.split(".")[0], total)
where = {"subfolder": "transformer", **trusting}
print(type(AutoConfig.from_pretrained("tester/tiny", **where)).__name__)
print(AutoModel.from_pretrained("tester/tiny", dtype=torch.bfloat16, **where).dtype)
try:
    AutoModel.from_pretrained("tester/bad", **where)
except ValueError as error:
    print("refused", "rms_norm_eps" in str(error))
"""


@pytest.mark.slow  # a process of its own; test_push.py has one by default
def test_auto_model_loads_parts_where_codeclade_is_not_installed(
    hub, pipe, bare_python, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("tester/tiny", "tester/bad"):
        push(pipe, name)
    change(hub, "transformer/config.json", with_fields(rms_norm_eps=-1.0), name="tester/bad")
    expected = []
    for part in (pipe.transformer, pipe.refiner):
        values = part.state_dict().values()
        total = round(sum(value.double().abs().sum().item() for value in values), 3)
        expected.append(f"{type(part).__name__} transformers_modules {total}")
    lines = fresh(hub, tmp_path / "home", BARE, interpreter=bare_python)
    assert lines == [*expected, *expected, "CodecladeConfig", "torch.bfloat16", "refused True"]


def test_code_at_the_root_of_a_pipeline_claims_no_weights_there(hub, pipe):
    push(pipe, "tester/tiny")
    assert "modeling_codeclade_transformer.py" in hub.repository("tester/tiny").resolve().files
    put(HfApi(hub.endpoint, token="hf_tester"), "lora.safetensors", b"weights of somebody")
    with pytest.raises(ValueError, match=r"did not write \(lora\.safetensors\)"):
        push(pipe, "tester/tiny")
