"""Pipelines with a refiner: who turns clusters into ids, redraw, the refiner's settings."""

import pytest
import torch

from builders import REFINERS, build_refiner
from codeclade import CodecladePipeline
from codeclade.components.refiner import generator_states

CTF, MASC = REFINERS["CTF"], REFINERS["MASC"]


@pytest.fixture
def refining_pipeline(tiny_pipeline):
    """Build a pipeline over clusters with a refiner of some kind."""

    def build(**changes) -> CodecladePipeline:
        pipe = tiny_pipeline()
        parts = {key: value for key, value in pipe.components.items() if key != "refiner"}
        pipe = CodecladePipeline(**parts, refiner=build_refiner(**changes))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", [CTF, {}, MASC], ids=["CTF", "DCPE", "MASC"])
def test_the_pipeline_uses_its_refiner_unless_told_otherwise(kind, refining_pipeline, tmp_path):
    pipe = refining_pipeline(**kind)
    labels = [0, 3]
    ids, same, member = (
        pipe(labels, refine=way, output_type="latent", generator=seeded()).images
        for way in (None, "refiner", "member")
    )
    assert torch.equal(ids, same) and not torch.equal(ids, member)
    clusters = pipe(labels, output_type="cluster", generator=seeded()).images
    assert torch.equal(pipe.cluster_map.to_clusters(member), clusters)
    if pipe.refiner.config.mask_to_members:
        assert torch.equal(pipe.cluster_map.to_clusters(ids), clusters)
    given = {"class_labels": torch.tensor(labels)} if pipe.refiner.config.num_classes else {}
    if pipe.refiner.config.context_dim:
        states = generator_states(
            pipe.transformer, clusters.flatten(1), class_labels=torch.tensor(labels)
        )
        given["context"] = states
    greedy = pipe.refiner(clusters.flatten(1), mapping=pipe.cluster_map.mapping, **given)
    if pipe.refiner.config.sampling_temperature == 0:
        assert torch.equal(ids.flatten(1), greedy.logits.argmax(-1))
    pipe.save_pretrained(tmp_path)
    loaded = CodecladePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(labels, output_type="latent", generator=seeded()).images
    assert torch.equal(again, ids)


@pytest.mark.parametrize("kind", [CTF, {}, MASC], ids=["CTF", "DCPE", "MASC"])
def test_redraw_asks_the_refiner(kind, refining_pipeline):
    pipe = refining_pipeline(**kind)
    clusters = pipe([0, 3], output_type="cluster", generator=seeded()).images
    settings = {"refine": "refiner", "output_type": "latent", "generator": seeded()}
    two = {"class_labels": [0, 3], "num_images_per_prompt": 2}
    ids = pipe.redraw(clusters=clusters, **two, **settings).images
    assert ids.shape == (4, 4, 4)
    if pipe.refiner.config.mask_to_members:
        expected = clusters.repeat_interleave(2, dim=0)
        assert torch.equal(pipe.cluster_map.to_clusters(ids), expected)
        assert not torch.equal(ids[0], ids[1])
    else:  # arg-max
        from_start = pipe([0, 3], output_type="latent", generator=seeded()).images
        assert torch.equal(ids, from_start.repeat_interleave(2, dim=0))
    with pytest.raises(ValueError, match="class_labels"):
        pipe.redraw(clusters=clusters, **settings)
    members = pipe.redraw(clusters=clusters, output_type="ids").images
    assert torch.equal(pipe.cluster_map.to_clusters(members), clusters)


def test_refiners_of_a_pipeline_are_checked(refining_pipeline, tiny_pipeline):
    with pytest.raises(ValueError, match="refiner turns 12 clusters into 33 ids"):
        refining_pipeline(codebook_size=33)
    with pytest.raises(ValueError, match=r"refine='refiner' must be .* none is loaded"):
        tiny_pipeline()(0, refine="refiner")
    with pytest.raises(ValueError, match=r"refine='always' must be .* one is loaded"):
        refining_pipeline()(0, refine="always")


def test_a_call_gives_the_refiner_its_settings(refining_pipeline):
    pipe = refining_pipeline(**CTF)
    clusters = pipe([0, 3], output_type="clusters", generator=seeded()).images
    given = {"refiner_settings": {"temperature": 0}, "output_type": "ids"}
    greedy = pipe([0, 3], generator=seeded(), **given).images
    logits = pipe.refiner(
        clusters.flatten(1), torch.tensor([0, 3]), mapping=pipe.cluster_map.mapping
    ).logits
    assert torch.equal(greedy.flatten(1), logits.argmax(-1))
    assert not torch.equal(greedy, pipe([0, 3], output_type="ids", generator=seeded()).images)
    redrawn = pipe.redraw(clusters=clusters, class_labels=[0, 3], refine="refiner", **given)
    assert torch.equal(redrawn.images, greedy)
    # One candidate is the arg-max at any temperature.
    given["refiner_settings"] = {"temperature": 3.0, "top_k": 1}
    assert torch.equal(pipe([0, 3], generator=seeded(), **given).images, greedy)


def test_a_call_guides_the_refiner(refining_pipeline):
    pipe = refining_pipeline(null_class=True, sampling_temperature=0.0)
    labels = torch.tensor([0, 3])
    clusters = pipe([0, 3], output_type="clusters", generator=seeded()).images
    settings = {"guidance_scale": 4.0}
    ids = pipe([0, 3], output_type="ids", generator=seeded(), refiner_settings=settings).images
    expected = pipe.refiner.refine(clusters.flatten(1), labels, guidance_scale=4.0)
    assert torch.equal(ids.flatten(1), expected)
    assert not torch.equal(expected, pipe.refiner.refine(clusters.flatten(1), labels))


@pytest.mark.parametrize(
    ("settings", "refine", "words"),
    [
        ({"heat": 1}, None, "refiner_settings has no 'heat'; it has 'temperature', 'top_k'"),
        ({"temperature": -1}, None, "temperature=-1 must be a number, 0 or more"),
        ({"temperature": float("nan")}, None, "temperature=nan must be a number, 0 or more"),
        ({"guidance_scale": float("inf")}, None, "guidance_scale=inf must be a number, 0 or more"),
        ({"top_k": 2.5}, None, r"top_k=2.5 must be a whole number, 0 or more"),
        ({"guidance_scale": 2.0}, None, "guidance_scale=2.0 needs a refiner with a null class"),
        ({"temperature": 1.0}, "member", "are of a refiner, and none is asked here"),
    ],
)
def test_settings_that_a_refiner_cannot_have_are_refused(
    refining_pipeline, settings, refine, words
):
    with pytest.raises(ValueError, match=words):
        refining_pipeline()(0, refine=refine, refiner_settings=settings)


def test_a_refiner_for_smaller_images_than_the_transformers_is_refused(refining_pipeline):
    with pytest.raises(ValueError, match="refiner was made for 2 x 2 tokens, the transformer"):
        refining_pipeline(**MASC | {"grid_size": 2})
