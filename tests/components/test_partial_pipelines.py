"""Pipelines with some of their parts, and what is kept or refused when they are saved."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from builders import build_scheme, build_t5, build_text_pipeline, build_tokenizer
from codeclade import CodecladePipeline, CodecladeTextPipeline, CodecladeTransformer
from codeclade.components.editing import token_mask
from codeclade.hub.repository import read_repository


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_captions_are_encoded_before_the_rest_is_loaded(tmp_path):
    whole = build_text_pipeline("cluster")
    whole.save_pretrained(tmp_path)
    prompts = ["a red dog", "a blue house on the beach"]
    expected = whole(prompts, generator=seeded(), output_type="pt").images
    text = {"tokenizer": build_tokenizer(), "text_encoder": build_t5()}
    first = CodecladeTextPipeline.from_pretrained(
        tmp_path, **text, transformer=None, vq_model=None, cluster_map=None
    )
    embeds, mask = first.encode_prompt(prompts)
    assert embeds.shape[:2] == mask.shape == (2, 7)  # the longest caption and its end
    assert first.encode_prompt("a red dog", max_sequence_length=2)[1].shape == (1, 2)
    second = CodecladeTextPipeline.from_pretrained(tmp_path, tokenizer=None, text_encoder=None)
    images = second(
        prompt_embeds=embeds, prompt_attention_mask=mask, generator=seeded(), output_type="pt"
    ).images
    torch.testing.assert_close(images, expected)


def test_ids_are_sampled_before_the_tokenizer_is_loaded(tmp_path):
    whole = build_scheme("cluster")
    whole.save_pretrained(tmp_path)
    first = CodecladePipeline.from_pretrained(tmp_path, vq_model=None)
    ids = first([1, 2], generator=seeded(), output_type="ids").images
    assert torch.equal(ids, whole([1, 2], generator=seeded(), output_type="ids").images)
    clusters = whole.cluster_map.to_clusters(ids)
    redrawn = first.redraw(clusters=clusters, generator=seeded(), output_type="ids").images
    assert torch.equal(whole.cluster_map.to_clusters(redrawn), clusters)
    for call in (
        lambda: first(1),
        lambda: first.redraw(ids=ids, output_type="ids"),
        lambda: first(1, ids=ids, strength=0.5, output_type="ids"),
    ):
        with pytest.raises(ValueError, match="loaded without vq_model, so it cannot"):
            call()


@pytest.mark.parametrize("call", ["sample", "redraw"])
def test_a_pipeline_without_generator_says_so(tmp_path, call):
    build_scheme("cluster").save_pretrained(tmp_path)
    pipe = CodecladePipeline.from_pretrained(tmp_path, transformer=None)
    with pytest.raises(ValueError, match="loaded without transformer, so it cannot"):
        pipe(1) if call == "sample" else pipe.redraw(clusters=torch.zeros(1, 4, 4))


def test_loading_without_saving_memory(tmp_path):
    pipe = build_scheme("cluster")
    pipe.save_pretrained(tmp_path)
    expected = pipe(1, generator=seeded(), output_type="pt").images
    for dtype in (torch.float32, torch.bfloat16):
        loaded = CodecladePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False, dtype=dtype)
        assert loaded.vq_model.dtype == loaded.transformer.dtype == dtype
        assert loaded.vq_model.encoder.conv_in.weight.dtype == torch.float32
        if dtype == torch.float32:
            images = loaded(1, generator=seeded(), output_type="pt").images
            torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("part", [None, "vq_model", "transformer", "cluster_map"])
def test_pickles_are_not_written(tmp_path, part):
    pipe = build_scheme("cluster")
    with pytest.raises(ValueError, match="safe_serialization=False would write a pickle"):
        (getattr(pipe, part) if part else pipe).save_pretrained(tmp_path, safe_serialization=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"variant": "fp16"}, {"max_shard_size": "2KB"}])
def test_variants_and_shards_reach_every_part(tmp_path, arguments):
    pipe = build_scheme("cluster")
    pipe.save_pretrained(tmp_path, **arguments)
    for part in ("vq_model", "transformer", "cluster_map"):
        names = [path.name for path in (tmp_path / part).glob("*.safetensors")]
        if "variant" in arguments:
            assert names and all(".fp16" in name for name in names)
        elif part == "transformer":
            assert len(names) > 1
    loaded = CodecladePipeline.from_pretrained(tmp_path, variant=arguments.get("variant"))
    images = loaded(1, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(images, pipe(1, generator=seeded(), output_type="pt").images)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 1, 8, 8), (2, 8, 8, 1)])
def test_masks_in_the_order_of_torch_and_of_numpy(shape):
    mask = np.zeros((2, 8, 8), dtype=np.float32)
    mask[0, 5, 2] = 1
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, 2, 1] = True
    assert torch.equal(token_mask(mask.reshape(shape), 4), expected)


def test_the_number_of_steps_is_that_of_the_last_call():
    pipe = build_scheme("token")
    assert pipe.num_timesteps == 16
    ids, mask, steps = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(4, 4), []
    mask[1, 2], mask[2, 3] = 1, 1
    pipe(1, ids=ids, mask_image=mask, callback_on_step_end=lambda p, i, t, k: steps.append(i) or k)
    assert pipe.num_timesteps == len(steps) == 6
    pipe(1)
    assert pipe.num_timesteps == 16


@pytest.fixture
def repository(tmp_path):
    """A folder as it is pushed, code included."""
    build_scheme("cluster").save_pretrained(tmp_path / "saved")
    for name, content in read_repository(tmp_path / "saved").files.items():
        path = tmp_path / "pushed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return tmp_path / "pushed"


def test_saving_a_pipeline_of_a_repository_keeps_its_code(repository, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
    assert type(pipe).__module__.startswith("diffusers_modules")
    expected = pipe(1, generator=seeded(), output_type="pt").images
    pipe.save_pretrained(tmp_path / "again")
    for file in repository.rglob("*.py"):
        copy = tmp_path / "again" / file.relative_to(repository)
        assert copy.read_bytes() == file.read_bytes(), file
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "CodecladePipeline"]
    assert index["vq_model"] == ["modeling_codeclade_vq_model", "VQModel"]
    # Both with the code beside it and with the installed package.
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True)
    for loaded in (again, CodecladePipeline.from_pretrained(tmp_path / "again")):
        images = loaded(1, generator=seeded(), output_type="pt").images
        torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("part", ["vq_model", "cluster_map", "transformer"])
def test_configs_inside_a_pipeline_name_their_code(repository, part):
    config = json.loads((repository / part / "config.json").read_text())
    module, class_name = config["auto_map"]["AutoModel"].split(".")
    assert f"class {class_name}(" in (repository / part / f"{module}.py").read_text()
    if part == "transformer":
        loaded = CodecladeTransformer.from_pretrained(repository, subfolder=part)
        assert loaded.config.vocab_size == config["vocab_size"]
