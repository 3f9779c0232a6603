"""Codebook sources: real model classes at tiny size, published layouts, a Hub over HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from codeclade.checkpoints.codebooks import load_codebook, load_tokenizer
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

KEY = "quantize.embedding.weight"


@pytest.fixture
def rows():
    return torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


# --- array files


def test_arrays(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows.numpy())
    save_file(
        {"anything": rows.half(), "counts": torch.ones(3, 3).long()}, tmp_path / "a.safetensors"
    )
    assert torch.equal(load_codebook(tmp_path / "rows.npy"), rows)
    half = load_codebook(tmp_path / "a.safetensors")
    assert half.dtype == torch.float32 and torch.equal(half, rows.half().float())


def test_float64_is_kept(tmp_path, rows):
    exact = rows.double() + 1e-12
    np.save(tmp_path / "rows.npy", exact.numpy())
    assert torch.equal(load_codebook(tmp_path / "rows.npy"), exact)


def test_table_names_any_tensor(tmp_path, rows):
    save_file({"a": rows, "b": rows + 1}, tmp_path / "two.safetensors")
    assert torch.equal(load_codebook(tmp_path / "two.safetensors", table="b"), rows + 1)
    with pytest.raises(ValueError, match=r"choose by --table among a, b"):
        load_codebook(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds no tensor c"):
        load_codebook(tmp_path / "two.safetensors", table="c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.npy", b"\x93NUMPY\x01", "no readable array file"),
        ("cut.safetensors", b"\x00" * 12, "truncated or damaged"),
        ("words.txt", b"hello", "unknown ending '.txt'"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_codebook(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_file_and_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # messages cut long paths
    with pytest.raises(ValueError, match=r"there is no 'gone\.npy'"):
        load_codebook("gone.npy")
    with pytest.raises(ValueError, match="holds no model weights"):
        load_codebook(tmp_path)


# --- our own models


def test_vq_model_pipeline_and_map_folders(tmp_path, tiny_pipeline):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    assert torch.equal(load_codebook(tmp_path / "pipe"), pipe.vq_model.codebook)
    assert torch.equal(load_codebook(tmp_path / "pipe" / "vq_model"), pipe.vq_model.codebook)
    with pytest.raises(ValueError, match="holds no codebook"):
        load_codebook(tmp_path / "pipe" / "cluster_map")


def test_tokenizers(tmp_path, tiny_pipeline):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    torch.save({"model": LLAMAGEN.tokenizer.published_weights(pipe.vq_model)}, tmp_path / "vq.pt")
    ids = torch.arange(16).view(1, 16)
    for source in ("pipe", "pipe/vq_model"):
        assert torch.equal(load_tokenizer(tmp_path / source).decode(ids), pipe.vq_model.decode(ids))
    with pytest.raises(ValueError, match="holds no tokenizer to decode with"):
        load_tokenizer(tmp_path / "pipe" / "cluster_map")


# --- published checkpoints


def test_llamagen_file(tmp_path, tiny_vq):
    model = tiny_vq()
    torch.save(
        {"model": LLAMAGEN.tokenizer.published_weights(model), "steps": 3},
        tmp_path / "vq_ds16_c2i.pt",
    )
    assert torch.equal(load_codebook(tmp_path / "vq_ds16_c2i.pt"), model.codebook)


def test_iar2_file_needs_a_choice(tmp_path, rows):
    weights = {KEY: rows[:8], "quantize.embedding_second": rows, "quant_conv.bias": rows[0]}
    torch.save({"model": weights}, tmp_path / "0485000.pt")
    with pytest.raises(ValueError, match=r"holds 2 codebooks .*--table"):
        load_codebook(tmp_path / "0485000.pt")
    assert torch.equal(load_codebook(tmp_path / "0485000.pt", table="semantic"), rows[:8])
    assert torch.equal(load_codebook(tmp_path / "0485000.pt", table="detail"), rows)


def test_folder_of_checkpoints_asks_for_one(tmp_path, rows):
    torch.save({KEY: rows}, tmp_path / "a.pt")
    assert torch.equal(load_codebook(tmp_path), rows)
    torch.save({KEY: rows}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"several checkpoints; name one of a\.pt, b\.pt"):
        load_codebook(tmp_path)


# --- diffusers and transformers


def test_diffusers_vq_model_and_variant(tmp_path):
    model = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=4, num_vq_embeddings=16, norm_num_groups=4
    )
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "amused").mkdir()  # a pipeline keeps it in vqvae/
    model.save_pretrained(tmp_path / "amused" / "vqvae", variant="fp16")
    for folder in ("plain", "amused", "amused/vqvae"):
        assert torch.equal(load_codebook(tmp_path / folder), model.quantize.embedding.weight)


TINY_LM = {
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
TINY_VQ = {
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
}


def janus():
    config = transformers.JanusConfig(
        text_config={"model_type": "llama", **TINY_LM},
        vision_config={
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16,
            "projection_dim": 8, "num_image_tokens": 1,
        },
        vq_config={**TINY_VQ, "num_embeddings": 24, "num_patches": 4, "image_token_embed_dim": 8},
    )  # fmt: skip
    return transformers.JanusForConditionalGeneration(config)


def chameleon():
    config = transformers.ChameleonConfig(
        **TINY_LM,
        vq_config={**TINY_VQ, "num_embeddings": 24},
        vocabulary_map={"<image>": 1, **{f"IMGIMG{i}Z": i for i in range(4)}},
    )
    return transformers.ChameleonForConditionalGeneration(config)


def emu3():
    config = transformers.Emu3Config(
        text_config={**TINY_LM, "pad_token_id": 0},
        vq_config={
            **TINY_VQ, "codebook_size": 24, "hidden_size": 32, "temporal_downsample_factor": 1,
            "attn_resolutions": [],
        },
        vocabulary_map={"<image>": 1},
    )  # fmt: skip
    return transformers.Emu3ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [janus, chameleon, emu3])
def test_multimodal_models_read_one_shard(tmp_path, build):
    model = build()
    codebook = model.model.vqmodel.quantize.embedding.weight
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    (shard,) = {f for key, f in index["weight_map"].items() if key.endswith(KEY)}
    for file in (tmp_path / "sharded").glob("*.safetensors"):
        if file.name != shard:
            file.unlink()  # nothing but the codebook's shard may be touched
    assert torch.equal(load_codebook(tmp_path / "sharded"), codebook)

    model.model.vqmodel.save_pretrained(tmp_path / "vq_alone")
    assert torch.equal(load_codebook(tmp_path / "vq_alone"), codebook)


# --- the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine: repositories are folders owner/name; `hub.served` lists downloads."""
    root, commit = tmp_path / "hub", "0" * 40

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                repo = root / parts[2] / parts[3]
                files = [p.relative_to(repo).as_posix() for p in repo.rglob("*") if p.is_file()]
                info = {"id": "/".join(parts[2:4]), "sha": commit}
                info["siblings"] = [{"rfilename": file} for file in files]
                return self.send(200 if files else 404, json.dumps(info).encode(), {}, body)
            file = root.joinpath(*parts[:2], *parts[4:])
            if parts[2:3] != ["resolve"] or not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            if body:
                server.served.append("/".join(parts[4:]))
            headers = {"X-Repo-Commit": commit, "ETag": f'"{abs(hash(self.path))}"'}
            return self.send(200, file.read_bytes(), headers, body)

        def send(self, code, content, headers, body):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.served = root, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_hub_downloads_index_and_one_shard(hub, rows):
    repo = hub.root / "owner" / "emu"
    repo.mkdir(parents=True)
    save_file({"text.weight": rows}, repo / "model-00001-of-00002.safetensors")
    save_file({f"model.vqmodel.{KEY}": rows + 1}, repo / "model-00002-of-00002.safetensors")
    weight_map = {
        "text.weight": "model-00001-of-00002.safetensors",
        f"model.vqmodel.{KEY}": "model-00002-of-00002.safetensors",
    }
    (repo / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_codebook("owner/emu"), rows + 1)
    assert hub.served == ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]


def test_hub_file_folder_and_tokenizer(hub, rows, tiny_vq):
    repo = hub.root / "owner" / "zoo"
    model = tiny_vq()
    model.save_pretrained(repo / "small" / "vq_model")
    torch.save({KEY: rows}, repo / "vq_ds16_c2i.pt")
    assert torch.equal(load_codebook("owner/zoo/vq_ds16_c2i.pt"), rows)
    assert torch.equal(load_codebook("owner/zoo/small"), model.codebook)
    with pytest.raises(ValueError, match=r"owner/zoo has no file or folder large"):
        load_codebook("owner/zoo/large")
    for source in ("owner/zoo/small", "owner/zoo/small/vq_model"):
        assert torch.equal(load_tokenizer(source).codebook, model.codebook)


def test_hub_without_the_repository(hub):
    with pytest.raises(ValueError, match="neither a file or folder here nor a repository") as error:
        load_codebook("runs/tokenizer")
    assert "\n" not in str(error.value)


def test_hub_out_of_reach_uses_the_cache(hub, monkeypatch, rows):
    repo = hub.root / "owner" / "vq"
    repo.mkdir(parents=True)
    save_file({KEY: rows}, repo / "model.safetensors")
    load_codebook("owner/vq")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(load_codebook("owner/vq"), rows)
    with pytest.raises(ValueError, match="neither a file or folder here nor a repository"):
        load_codebook("owner/other")
