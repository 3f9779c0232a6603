"""Every kind of file a published checkpoint comes in: read, converted, refused."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codeclade import CodecladeConfig, CodecladeTransformer
from codeclade.checkpoints.containers import load_checkpoint, load_mapping
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN

SIZES = {  # layers, width, heads, feed-forward width, parameters with 16384 ids, tensors
    "B": (12, 768, 12, 2048, 110_888_448, 88),
    "L": (24, 1024, 16, 2816, 342_910_976, 172),
    "XL": (36, 1280, 20, 3584, 774_699_520, 256),
    "XXL": (48, 1536, 24, 4096, 1_410_972_672, 340),
    "XXXL": (48, 2560, 40, 6912, 3_893_027_840, 340),
    "1B": (22, 2048, 32, 5632, 1_199_616_000, 158),
    "3B": (24, 3200, 32, 8704, 3_096_659_200, 172),
    "7B": (32, 4096, 32, 11008, 6_614_589_440, 228),
}


def gpt_shapes(layers: int, width: int, ffn: int, vocab: int = 16384) -> dict[str, tuple]:
    """Names and shapes of a class-conditional LlamaGen generator."""
    shapes = {
        "cls_embedding.embedding_table.weight": (1001, width),
        "tok_embeddings.weight": (vocab, width),
        "norm.weight": (width,),
        "output.weight": (vocab, width),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (ffn, width),
            f"layers.{i}.feed_forward.w3.weight": (ffn, width),
            f"layers.{i}.feed_forward.w2.weight": (width, ffn),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    return shapes


def random_weights(shapes: dict[str, tuple], dtype=torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator).sub_(0.5).to(dtype)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(gpt_shapes(2, 32, 48, vocab=24))


def caches() -> dict[str, Tensor]:
    """Buffers some published files carry."""
    return {
        "freqs_cis": torch.zeros(17, 8, 2),
        "causal_mask": torch.zeros(17, 17),
        "layers.0.attention.kv_cache.k_cache": torch.zeros(1),
        "layers.1.attention.kv_cache.v_cache": torch.zeros(1),
        "quantize.codebook_used": torch.zeros(4),
        "quantize.codebook_used2": torch.zeros(4),
    }


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


TRAINING = {
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(5.0)}}},
    "steps": 300000,
    "args": argparse.Namespace(gpt_model="GPT-B", image_size=256, lr=1e-4, dropout_p=0.1),
}
SIMPLE = {
    "bare (FSDP)": lambda w: w,
    "model": lambda w: {"model": w},
    "model, optimizer, args (DDP)": lambda w: {"model": w} | TRAINING,
    "module (DeepSpeed)": lambda w: {"module": w, "dp_world_size": 8, "ds_version": "0.9"},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "compiled": lambda w: {"model": prefixed(w, "_orig_mod.")},
    "DDP prefix": lambda w: {"model": prefixed(w, "module.")},
    "both prefixes": lambda w: prefixed(w, "module._orig_mod."),
    "buffers": lambda w: {"model": w | caches()},
    "parameters": lambda w: {"model": {key: nn.Parameter(value) for key, value in w.items()}},
    "IAR2 training": lambda w: {
        "model": w,
        "optimizer_main": {},
        "discriminator": {"a": w["norm.weight"]},
    },
}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_container_gives_the_bare_weights(kind, legacy, weights, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(SIMPLE[kind](weights), path, _use_new_zipfile_serialization=not legacy)
    assert_same(load_checkpoint(path), weights)


def test_safetensors(weights, tmp_path):
    save_file(weights, tmp_path / "gpt.safetensors")
    assert_same(load_checkpoint(tmp_path / "gpt.safetensors"), weights)


def test_averaged_weights_are_preferred(weights, tmp_path):
    other = {key: value + 1 for key, value in weights.items()}
    torch.save({"model": other, "ema": weights}, tmp_path / "c.pt")
    assert_same(load_checkpoint(tmp_path / "c.pt"), weights)


def test_weights_that_are_views_of_one_storage(weights, tmp_path):
    sizes = [value.numel() for value in weights.values()]
    flat = torch.cat([value.flatten() for value in weights.values()])
    views = {
        key: part.view(value.shape)
        for (key, value), part in zip(weights.items(), flat.split(sizes), strict=True)
    }
    torch.save(views, tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert_same(loaded, weights)
    model = LLAMAGEN.generator.build(loaded, grid_size=4, num_attention_heads=2)
    model.save_pretrained(tmp_path / "model")
    again = CodecladeTransformer.from_pretrained(tmp_path / "model")
    assert_same(LLAMAGEN.generator.published_weights(again), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_round_trips_byte_for_byte(dtype, weights, tmp_path):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    torch.save({"model": weights}, tmp_path / "c.pt")
    model = LLAMAGEN.generator.build(
        load_checkpoint(tmp_path / "c.pt"), grid_size=4, num_attention_heads=2
    )
    assert model.dtype == dtype
    model.save_pretrained(tmp_path / "model")
    again = CodecladeTransformer.from_pretrained(tmp_path / "model", dtype="auto")
    assert_same(LLAMAGEN.generator.published_weights(again), weights)


def test_a_mapping_may_start_inside_a_larger_storage(tmp_path):
    mapping = torch.randperm(64)
    torch.save(torch.cat([torch.zeros(64, dtype=torch.int64), mapping])[64:], tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt").storage_offset() == 64
    loaded = load_mapping(tmp_path / "m.pt")
    assert torch.equal(loaded, mapping)
    assert loaded.untyped_storage().nbytes() == 64 * 8  # the rest is not kept


class Trap:
    """A pickle that writes a file where it is executed."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("where", ["value", "args", "plain pickle", "mapping"])
def test_a_malicious_pickle_is_refused_and_not_executed(where, weights, tmp_path):
    target, path = tmp_path / "executed.txt", tmp_path / "c.pt"
    trap = Trap(target)
    if where == "plain pickle":
        path.write_bytes(pickle.dumps({"model": trap}))
    else:
        torch.save(
            {
                "value": {"model": weights | {"x": trap}},
                "args": {"model": weights, "args": trap},
            }.get(where, trap),
            path,
        )
    load = load_mapping if where == "mapping" else load_checkpoint
    with pytest.raises(ValueError, match="refused, since loading it could run code") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    pickle.loads(pickle.dumps(trap))  # the trap does work
    assert target.read_text() == "executed"


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(name, share, weights, tmp_path):
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=f"{name} is truncated or damaged") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict of tensors"),
        ({"steps": 3}, "holds no weights; its keys are steps"),
        (torch.zeros(3), "holds a Tensor, not a dict"),
    ],
)
def test_a_file_without_weights_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "c.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint file .*nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_on_the_meta_device(size):
    layers, width, heads, ffn, parameters, tensors = SIZES[size]
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in gpt_shapes(layers, width, ffn).items()}
    assert len(weights) == tensors
    model = LLAMAGEN.generator.build(weights, grid_size=24)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.num_attention_heads == heads
    back = LLAMAGEN.generator.published_weights(model)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in weights.items()
    }


@pytest.mark.slow
def test_a_whole_gpt_b_round_trips_byte_for_byte(tmp_path):
    layers, width, _, ffn, *_ = SIZES["B"]
    weights = random_weights(gpt_shapes(layers, width, ffn), torch.bfloat16)
    torch.save({"model": weights} | TRAINING, tmp_path / "c2i_B_256.pt")
    model = LLAMAGEN.generator.build(load_checkpoint(tmp_path / "c2i_B_256.pt"), grid_size=16)
    model.save_pretrained(tmp_path / "model")
    again = CodecladeTransformer.from_pretrained(tmp_path / "model", dtype="auto")
    assert_same(LLAMAGEN.generator.published_weights(again), weights)


def test_saved_weights_hold_nothing_but_the_weights(weights, tmp_path):
    torch.save({"model": weights | caches()}, tmp_path / "c.pt")
    model = LLAMAGEN.generator.build(
        load_checkpoint(tmp_path / "c.pt"), grid_size=4, num_attention_heads=2
    )
    model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(v.numel() for v in weights.values())


def test_the_published_tokenizer_round_trips_byte_for_byte(tiny_vq):
    vq_model = tiny_vq(
        block_out_channels=(32, 32, 64), latent_channels=32, norm_num_groups=32, codebook_dim=8
    )
    weights = LLAMAGEN.tokenizer.published_weights(vq_model)
    assert weights["encoder.mid.1.q.weight"].ndim == 4
    assert_same(LLAMAGEN.tokenizer.published_weights(LLAMAGEN.tokenizer.build(weights)), weights)


def test_text_conditional_xl_on_the_meta_device():
    layers, width, _, ffn, *_ = SIZES["XL"]
    shapes = gpt_shapes(layers, width, ffn)
    shapes.pop("cls_embedding.embedding_table.weight")
    shapes |= {
        "cls_embedding.cap_proj.fc1.weight": (width, 2048),
        "cls_embedding.cap_proj.fc2.weight": (width, width),
        "cls_embedding.uncond_embedding": (120, 2048),
    }
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
    model = LLAMAGEN.generator.build(weights, grid_size=32)
    count = sum(p.numel() for p in model.parameters())
    assert count - 120 * 2048 == 777_678_080
    assert isinstance(model.config, CodecladeConfig) and model.config.prefix_length == 120
    assert sorted(LLAMAGEN.generator.published_weights(model)) == sorted(weights)
