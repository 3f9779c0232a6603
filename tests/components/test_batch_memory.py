"""`max_memory`: the same images in batches that fit, and bytes that are those which are taken."""

import logging

import numpy as np
import pytest
import torch

from builders import SCHEMES, build_refiner, build_scheme, build_text_pipeline
from codeclade import CodecladeConfig, CodecladeTransformer, VQModel
from codeclade.components import batch_memory
from codeclade.components.batch_memory import (
    images_at_once,
    memory_limit,
    refining_bytes,
    sampling_bytes,
)
from codeclade.components.call_checks import PICTURES
from codeclade.components.image_cache import ImageCache

LABELS = [0, 1, 2, 3, 4, 0, 1]


def two_images(pipe, monkeypatch, output_type: str = "ids") -> int:
    """A limit that two guided images fit and three do not."""
    monkeypatch.setattr(batch_memory, "DECODING_MEMORY", 2**40)  # no slices
    one = sampling_bytes(pipe.transformer, guided=True)
    picture = pipe.vq_model.decoding_bytes(16) if output_type in PICTURES else 0
    return 2 * (one + picture)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "ids", "clusters"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_batches_make_the_images_of_one(scheme, output_type, monkeypatch):
    pipe = build_scheme(scheme)
    if output_type == "clusters" and scheme == "token":
        pytest.skip("this pipeline has no clusters")
    seen = []
    sample = pipe.sample_tokens
    monkeypatch.setattr(
        pipe, "sample_tokens", lambda *a, **k: (seen.append(len(a[2].members)), sample(*a, **k))[1]
    )
    settings = {"guidance_scale": 2.0, "output_type": output_type}
    whole = pipe(LABELS, generator=torch.Generator().manual_seed(3), **settings).images
    limit = two_images(pipe, monkeypatch, output_type)
    draws = torch.Generator().manual_seed(3)
    parts = pipe(LABELS, generator=draws, max_memory=limit, **settings).images
    assert seen == [7, 2, 2, 2, 1]
    assert type(parts) is type(whole) and len(parts) == len(whole)
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1)


def test_edits_and_captions_go_in_batches_too(monkeypatch):
    pipe = build_scheme("token")
    limit = two_images(pipe, monkeypatch)
    ids = torch.randint(32, (7, 4, 4), generator=torch.Generator().manual_seed(0))
    edit = {"ids": ids, "strength": 0.5, "output_type": "ids", "guidance_scale": 2.0}
    found = [
        pipe(LABELS, generator=torch.Generator().manual_seed(1), max_memory=size, **edit).images
        for size in (None, limit)
    ]
    assert torch.equal(*found)
    assert not torch.equal(found[0], ids)
    text = build_text_pipeline()
    limit = two_images(text, monkeypatch)
    prompts = ["a red house", "a dog", "a cat", "a blue house", "a dog"]
    asked = {"output_type": "ids", "guidance_scale": 3.0}
    found = [
        text(prompts, generator=torch.Generator().manual_seed(1), max_memory=size, **asked).images
        for size in (None, limit)
    ]
    assert torch.equal(*found)


def test_the_cache_is_what_the_arithmetic_counts():
    config = CodecladeConfig(
        1024, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, grid_size=16
    )
    model, cache = CodecladeTransformer(config).eval(), ImageCache(config)
    with torch.no_grad():
        model(class_labels=torch.zeros(2, dtype=torch.int64), past_key_values=cache)
    kept = sum(layer.buffers.nbytes for layer in cache.layers)  # of both rows of an image
    noise = 1024 * batch_memory.NOISE
    assert sampling_bytes(model, guided=True) - noise == kept
    assert sampling_bytes(model, guided=False) - noise == kept // 2


def test_a_refiner_counts_where_it_is_asked():
    pipe = build_scheme("cluster", refiner=build_refiner())
    one = sampling_bytes(pipe.transformer, guided=False)
    assert refining_bytes(pipe.refiner) > one
    given = pipe.transformer, False
    without, _ = images_at_once(10 * one, 10, *given)
    with_refiner, _ = images_at_once(10 * one, 10, *given, None, pipe.refiner)
    assert without == 10 > with_refiner
    # Guidance of its own and the generator's states as an input come on top.
    entries = pipe.refiner.config.num_tokens * pipe.refiner.config.codebook_size
    guided = refining_bytes(pipe.refiner, guided=True) - refining_bytes(pipe.refiner)
    assert guided == entries * batch_memory.GUIDING
    limit = 10 * refining_bytes(pipe.refiner)
    sizes = [images_at_once(limit, 10, *given, None, pipe.refiner, way)[0] for way in (False, True)]
    assert sizes == [10, 5]
    pipe.refiner.config.context_dim = 1000
    assert refining_bytes(pipe.refiner) > one + 1000 * pipe.refiner.config.num_tokens


def test_a_call_counts_the_guidance_of_its_refiner(caplog):
    pipe = build_scheme("cluster", refiner=build_refiner(null_class=True))
    sizes = []
    for scale in (1.0, 2.0):
        caplog.clear()
        with caplog.at_level("INFO", logger=batch_memory.__name__):
            pipe(
                [0] * 10, output_type="ids", max_memory=10 * refining_bytes(pipe.refiner),
                guidance_scale=1, refiner_settings={"guidance_scale": scale},
            )  # fmt: skip
        sizes.append(int(caplog.messages[-1].split(", ")[1].split()[0]))
    assert sizes == [10, 5]


def test_batches_are_as_equal_as_they_can_be(caplog):
    model = CodecladeTransformer(CodecladeConfig(64, hidden_size=32, num_hidden_layers=1,
                                                 num_attention_heads=2, grid_size=4))  # fmt: skip
    one = sampling_bytes(model, guided=False)
    with caplog.at_level(logging.INFO, logger=batch_memory.__name__):
        size, taken = images_at_once(5 * one, 6, model, guided=False)
    assert (size, taken) == (3, 3 * one)
    assert "6 images, 3 at once" in caplog.text


def test_decoding_in_slices_bounds_what_a_batch_takes():
    vq_model = VQModel(block_out_channels=(128, 128, 256, 256, 512), sample_size=256)
    model = CodecladeTransformer(CodecladeConfig(64, hidden_size=32, num_hidden_layers=1,
                                                 num_attention_heads=2, grid_size=16))  # fmt: skip
    picture = vq_model.decoding_bytes(256)
    assert picture == 4 * 256 * 256 * 128 * 4  # four tensors of 128 channels
    one = sampling_bytes(model, guided=False)
    small, taken = images_at_once(3 * picture - 1, 1000, model, False, vq_model)
    assert (small, taken) == (2, 2 * (picture + one))
    large, taken = images_at_once(2**31 + 1000 * one, 1000, model, False, vq_model)
    assert (large, taken) == (1000, 2**31 + 1000 * one)  # slices are bounded by themselves


@pytest.mark.parametrize(
    ("size", "limit"), [(None, None), (5, 5), ("4GB", 4 * 10**9), ("2MiB", 2**21)]
)
def test_sizes_are_bytes_or_words(size, limit):
    assert memory_limit(size) == limit


@pytest.mark.parametrize("size", ["much", -1, 0, [], "4"])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="max_memory="):
        memory_limit(size)


def test_what_does_not_fit_is_said():
    pipe = build_scheme("token")
    with pytest.raises(ValueError, match=r"max_memory=1,000 bytes is too little: one image takes"):
        pipe([0], max_memory=1000)


def test_a_callback_sees_one_batch(monkeypatch):
    pipe = build_scheme("token")
    limit = two_images(pipe, monkeypatch, "pil")
    asked = {"guidance_scale": 2.0, "max_memory": limit}
    seen = []
    watch = lambda pipe, step, token, given: seen.append(step) or {}  # noqa: E731
    pipe([0], callback_on_step_end=watch, **asked)
    assert len(seen) == 16
    with pytest.raises(ValueError, match="batches of 2 of the 7 images"):
        pipe(LABELS, callback_on_step_end=watch, **asked)
