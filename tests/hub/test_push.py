"""Push and load through a Hub: fresh processes, empty caches, identical images, clear errors.

Loading runs in processes of its own that reach nothing but the loopback address, as users on
another machine would: with codeclade, and in an environment where it is not installed.
"""

import json
import re
import shutil
import sys

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from builders import build_scheme
from codeclade import CodecladePipeline, bundled
from codeclade.cli import main
from codeclade.hub.push import push
from fake_hub import server as hub_server
from fake_hub.client import LOOPBACK_ONLY, TOKENS, head, hf, put, run
from fresh_loading import fresh, image_hash

pytest_plugins = "fake_hub.fixtures"


LOAD = """
import sys, transformers
from codeclade import ClusterMap, CodecladePipeline, VQModel
from diffusers import DiffusionPipeline

pinned, folder = sys.argv[1:]
pipe = CodecladePipeline.from_pretrained(folder)  # what diffusers itself pushes loads as well
pipe.push_to_hub("tester/plain")
pipe.cluster_map.push_to_hub("tester/map")
print(image_hash(CodecladePipeline.from_pretrained("tester/tiny")))
print(image_hash(CodecladePipeline.from_pretrained("tester/tiny", revision=pinned)))
print(image_hash(CodecladePipeline.from_pretrained("tester/tiny", local_files_only=True)))
print(image_hash(CodecladePipeline.from_pretrained("tester/tiny", device_map="cpu")))
print(image_hash(CodecladePipeline.from_pretrained("tester/tiny", device_map="balanced")))
half = CodecladePipeline.from_pretrained("tester/tiny", variant="bf16", dtype=torch.bfloat16)
print(half.dtype, image_hash(half))
plain = CodecladePipeline.from_pretrained("tester/tiny")
print({str(part.dtype) for part in (plain.vq_model, plain.transformer)})
print(image_hash(CodecladePipeline.from_pretrained("tester/plain")))
print(image_hash(DiffusionPipeline.from_pretrained("tester/plain")))
print(image_hash(CodecladePipeline.from_pretrained("tester/by-hand")))
config = transformers.AutoConfig.from_pretrained("tester/tiny", subfolder="transformer")
model = transformers.AutoModel.from_pretrained("tester/tiny", subfolder="transformer")
print(type(config).__name__, type(model).__module__)
print(VQModel.from_pretrained("tester/tiny", subfolder="vq_model").codebook_size)
print(ClusterMap.from_pretrained("tester/map").num_clusters)
try:
    CodecladePipeline.from_pretrained("tester/tiny", variant="fp8")
except ValueError as error:
    print("refused", "fp8" in str(error))
"""


@pytest.mark.slow  # test_parts.py loads by id by default, and the next test in a fresh process
def test_everything_loads_by_id_in_a_fresh_process(hub, saved, tiny_pipeline, tmp_path):
    pipe = CodecladePipeline.from_pretrained(saved)
    first = push(saved, "tester/tiny")
    other = tiny_pipeline("cluster", seed=1)
    other.save_pretrained(saved, max_shard_size="20KB")
    for part in ("vq_model", "transformer"):
        whole = [f for f in (saved / part).glob("*.safetensors") if "-of-" not in f.name]
        for file in whole:
            file.unlink()
    half = tiny_pipeline("cluster", seed=1).to(torch.bfloat16)
    half.save_pretrained(saved, variant="bf16")
    push(saved, "tester/tiny")
    api = HfApi(hub.endpoint, token="hf_tester")
    api.create_repo("tester/by-hand")
    api.upload_folder(repo_id="tester/by-hand", folder_path=saved)
    new = image_hash(other)
    assert fresh(hub, tmp_path / "home", LOAD, first.commit, saved) == [
        new,
        image_hash(pipe),
        *[new] * 3,
        f"torch.bfloat16 {image_hash(half)}",
        "{'torch.float32'}",
        *[new] * 3,
        "CodecladeConfig codeclade.components.transformer",
        "32",
        "12",
        "refused True",
    ]
    assert new != image_hash(pipe)


BARE = """
import sys, diffusers, transformers
from diffusers import DiffusionPipeline

trusting = {"trust_remote_code": True}
pipe = DiffusionPipeline.from_pretrained("tester/tiny", **trusting)
print(image_hash(pipe), type(pipe).__name__, type(pipe).__module__.split(".")[0])
offline = DiffusionPipeline.from_pretrained("tester/tiny", local_files_only=True, **trusting)
print(image_hash(offline))
print(pipe(["goldfish"], output_type="cluster").images.shape)
clusters = pipe("tabby", output_type="clusters").images
print(pipe.redraw(clusters=clusters, output_type="pt").images.shape)
try:
    DiffusionPipeline.from_pretrained("tester/tiny")
except ValueError as error:
    print("refused", "trust_remote_code" in str(error))
print(type(transformers.AutoModel.from_pretrained("tester/generator", **trusting)).__name__)
print(type(diffusers.AutoModel.from_pretrained("tester/vq", **trusting)).__name__)
"""


def test_loads_where_codeclade_is_not_installed(hub, saved, bare_python, tmp_path):
    push(saved, "tester/tiny")
    push(saved / "transformer", "tester/generator")
    push(saved / "vq_model", "tester/vq")
    expected = image_hash(CodecladePipeline.from_pretrained(saved))
    lines = fresh(hub, tmp_path / "home", BARE, interpreter=bare_python)
    assert lines == [
        f"{expected} CodecladePipeline diffusers_modules",
        expected,
        "torch.Size([1, 4, 4])",
        "torch.Size([1, 3, 16, 16])",
        "refused True",
        "CodecladeTransformer",
        "VQModel",
    ]


@pytest.mark.slow  # three processes that start from nothing, and images of the whole pipeline
def test_the_command_pushes_the_bundled_pipeline_by_xet(tmp_path):
    with hub_server.serve(tmp_path / "hub", tokens=TOKENS, xet=True) as server:
        code = f"{LOOPBACK_ONLY}import sys\nfrom codeclade.cli import main\nsys.exit(main())"
        command = [sys.executable, "-c", code, "push", bundled(), "tester/bundled"]
        output = run(server, tmp_path / "a", *command, "--space", "tester/demo")
        assert f"published {server.endpoint}/tester/bundled" in output
        assert f"published {server.endpoint}/spaces/tester/demo" in output
        assert server.requests("GET", "/xet-write-token/") and not server.requests("PUT")
        space = server.repository("tester/demo", "space")
        files = space.resolve().files
        assert {"app.py", "requirements.txt", "codeclade/__init__.py", "README.md"} <= set(files)
        assert not any("bundled_pipeline" in name or "screenshots" in name for name in files)
        load = """
from codeclade import CodecladePipeline
print(image_hash(CodecladePipeline.from_pretrained("tester/bundled"), "goldfish"))
"""
        pipe = CodecladePipeline.from_pretrained(bundled())
        assert fresh(server, tmp_path / "b", load) == [image_hash(pipe, "goldfish")]
        hf(server, tmp_path / "c", "download", "tester/bundled", "--local-dir", tmp_path / "copy")
        copy = CodecladePipeline.from_pretrained(tmp_path / "copy")
        assert image_hash(copy, "goldfish") == image_hash(pipe, "goldfish")
        assert (tmp_path / "copy" / "samples.png").stat().st_size > 10_000


@pytest.mark.slow  # imports the whole app in a process of its own
def test_a_pushed_space_starts_by_itself(hub, saved, bare_python, tmp_path):
    """The app of a Space finds codeclade beside it and its pipeline on the Hub."""
    assert main(["push", str(saved), "tester/tiny", "--no-samples", "--space", "tester/demo"]) == 0
    space = hub.repository("tester/demo", "space")
    assert space.variables["CODECLADE_PIPELINE"]["value"] == "tester/tiny"
    card = ModelCard(space.resolve().files["README.md"].content.decode()).data
    assert card.models == card.preload_from_hub == ["tester/tiny"]
    assert (card.sdk, card.python_version, card.app_file) == ("gradio", "3.12", "app.py")
    for name, file in space.resolve().files.items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.content is None:  # the example photo is a large file by its kind
            shutil.copy(hub.store.path(file.sha256), path)
        else:
            path.write_bytes(file.content)
    start = """
import os, sys
os.environ["CODECLADE_PIPELINE"] = "tester/tiny"
sys.path.insert(0, sys.argv[1])
import app, codeclade
print(os.path.dirname(codeclade.__file__), sorted(app.demo.get_api_info()["named_endpoints"]))
"""
    lines = fresh(hub, tmp_path / "home", start, tmp_path / "space", interpreter=bare_python)
    names = ["/clusters", "/edit", "/generate", "/reconstruct", "/redraw", "/region"]
    assert lines[-1] == f"{tmp_path}/space/codeclade {names}"


def test_a_second_push_is_one_commit_without_stale_files(hub, tiny_pipeline, tmp_path):
    tiny_pipeline("cluster").save_pretrained(tmp_path / "a", max_shard_size="20KB")
    push(tmp_path / "a", "tester/tiny")
    repository = hub.repository("tester/tiny")
    assert any("-of-" in name for name in repository.resolve().files)
    tiny_pipeline("cluster", seed=1).save_pretrained(tmp_path / "b")
    before = len(hub.requests("POST", "/commit/"))
    done = push(tmp_path / "b", "tester/tiny", message="whole files")
    assert len(hub.requests("POST", "/commit/")) == before + 1
    assert any("-of-" in name for name in done.deleted)
    files = repository.resolve().files
    assert not any("-of-" in name or name.endswith("safetensors.index.json") for name in files)
    assert repository.resolve().title == "whole files"
    assert ".gitattributes" in files


def test_a_pull_request_leaves_main_alone(hub, saved):
    push(saved, "tester/tiny")
    before = head(hub)
    (saved / "samples.png").write_bytes(b"\x89PNG")
    done = push(saved, "tester/tiny", create_pr=True)
    assert re.fullmatch(rf"{hub.endpoint}/tester/tiny/discussions/1", done.url)
    assert head(hub) == before != done.commit
    assert "samples.png" in hub.repository("tester/tiny").resolve("refs/pr/1").files


def test_a_push_deletes_nothing_that_is_not_its_own(hub, saved, tmp_path):
    api = HfApi(hub.endpoint, token="hf_tester")
    api.create_repo("tester/mixed")
    put(api, "lora.safetensors", b"weights of somebody", name="tester/mixed")
    before = head(hub, "tester/mixed")
    with pytest.raises(ValueError, match=r"did not write \(lora\.safetensors\)"):
        push(saved, "tester/mixed")
    assert head(hub, "tester/mixed") == before
    push(saved, "tester/tiny")
    put(api, "notes.md", b"kept", name="tester/tiny")
    with pytest.raises(ValueError, match="holds a pipeline, and this is one component"):
        push(saved / "cluster_map", "tester/tiny")
    push(saved / "cluster_map", "tester/map")
    with pytest.raises(ValueError, match="holds one component, and this is a pipeline"):
        push(saved, "tester/map")
    build_scheme("token").save_pretrained(tmp_path / "token")
    shutil.rmtree(tmp_path / "token" / "cluster_map")
    index = json.loads((tmp_path / "token" / "model_index.json").read_text())
    index["cluster_map"] = [None, None]
    (tmp_path / "token" / "model_index.json").write_text(json.dumps(index))
    done = push(tmp_path / "token", "tester/tiny")
    assert "cluster_map/config.json" in done.deleted
    files = hub.repository("tester/tiny").resolve().files
    assert "notes.md" in files and not any(name.startswith("cluster_map/") for name in files)


def test_a_commit_in_between_is_not_overwritten(hub, saved, monkeypatch):
    push(saved, "tester/tiny")
    read = HfApi.repo_info

    def late(api, *arguments, **options):
        info = read(api, *arguments, **options)
        put(HfApi(hub.endpoint, token="hf_tester"), "notes.md", b"now", name="tester/tiny")
        return info

    monkeypatch.setattr(HfApi, "repo_info", late)
    (saved / "samples.png").write_bytes(b"png")
    with pytest.raises(ValueError, match="somebody committed to tester/tiny in the meantime"):
        push(saved, "tester/tiny")


def test_private_is_not_a_wish(hub, saved):
    push(saved, "tester/tiny")
    before = head(hub)
    (saved / "samples.png").write_bytes(b"png")
    with pytest.raises(ValueError, match="tester/tiny is there and public; nothing was sent"):
        push(saved, "tester/tiny", private=True)
    assert head(hub) == before
    push(saved, "tester/hidden", private=True)
    assert hub.repository("tester/hidden").private
    push(saved, "tester/hidden")  # stays as it is
    assert hub.repository("tester/hidden").private


@pytest.mark.slow  # two processes that start from nothing
def test_a_pipeline_of_a_repositorys_own_code_is_pushed_like_ours(
    hub, saved, bare_python, tmp_path
):
    push(saved, "tester/tiny")
    save = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("tester/tiny", trust_remote_code=True)
pipe.save_pretrained(sys.argv[1])
"""
    fresh(hub, tmp_path / "a", f"import sys{save}", tmp_path / "copy", interpreter=bare_python)
    push(tmp_path / "copy", "tester/copy")
    load = """
from codeclade import CodecladePipeline
print(image_hash(CodecladePipeline.from_pretrained("tester/copy")))
"""
    expected = image_hash(CodecladePipeline.from_pretrained(saved))
    assert fresh(hub, tmp_path / "b", load) == [expected]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--create-pr"], "--space shows what is on main"),
        (["--space", "tester/a/b"], "is no repository name"),
    ],
)
def test_spaces_that_cannot_work_are_refused_first(hub, saved, flags, words, capsys):
    command = ["push", str(saved), "tester/tiny", "--no-samples", "--space", "tester/demo", *flags]
    assert main(command) == 2
    assert words in capsys.readouterr().err and not hub.log
    command[1] = str(saved / "cluster_map")
    assert main(command[:6]) == 2
    assert "--space shows class-conditional pipelines, not a ClusterMap" in capsys.readouterr().err


def test_a_private_space_says_what_it_needs(hub, saved, capsys):
    command = ["push", str(saved), "tester/tiny", "--no-samples", "--private"]
    assert main([*command, "--space", "tester/demo"]) == 0
    assert "needs a secret HF_TOKEN" in capsys.readouterr().out
    space = hub.repository("tester/demo", "space")
    assert space.private
    card = ModelCard(space.resolve().files["README.md"].content.decode()).data
    assert card.models == ["tester/tiny"] and "preload_from_hub" not in card.to_dict()


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_nothing_is_drawn_for_a_hub_that_will_refuse(hub, saved, capsys, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("codeclade.cli.push._sample_sheet", lambda folder: pytest.fail("drawn"))
    assert main(["push", str(saved), "tester/tiny"]) == 2
    assert "without a valid token" in capsys.readouterr().err


def test_a_sample_sheet_is_drawn_where_there_is_none(hub, saved):
    assert main(["push", str(saved), "tester/tiny"]) == 0
    files = hub.repository("tester/tiny").resolve().files
    assert "![Samples, one class a row](samples.png)" in files["README.md"].content.decode()
    assert files["samples.png"].size > 1000 and not (saved / "samples.png").exists()
