"""Editing: what is kept is kept, what changes is what a run from scratch would have sampled."""

import pytest
import torch
from PIL import Image, ImageDraw

from builders import REFINERS, SCHEMES, build_refiner, build_scheme, build_text_pipeline
from codeclade.components.editing import thin_mask, token_mask

LOWER = torch.arange(4).view(4, 1).expand(4, 4) >= 2
SPOT = torch.zeros(4, 4, dtype=torch.bool)
SPOT[1:3, 1:3] = True


def run(pipe, labels=(1, 2), seed: int = 0, **settings) -> torch.Tensor:
    settings = {"output_type": "ids", "guidance_scale": 2.0} | settings
    generators = [
        torch.Generator().manual_seed(seed + i)
        for i in range(len(labels) * settings.get("num_images_per_prompt", 1))
    ]
    return pipe(list(labels), generator=generators, **settings).images


def changed(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Tokens (B, G, G) that differ."""
    different = before != after
    return different.any(-1) if different.ndim == 4 else different


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_outside_the_mask_are_kept(scheme):
    pipe = build_scheme(scheme)
    before = run(pipe)
    after = run(pipe, seed=10, ids=before, mask_image=SPOT)
    moved = changed(before, after)
    assert not moved[:, ~SPOT].any()
    assert moved[:, SPOT].float().mean() >= 0.5
    clusters = [
        run(pipe, seed=10, ids=before, mask_image=SPOT, output_type=kind)
        for kind in ("clusters", "pt")
    ]
    assert clusters[0].shape == (2, 4, 4)
    pixels = pipe.vq_model.decode(after).detach()
    torch.testing.assert_close(clusters[1], (pixels / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mask", [SPOT, LOWER, torch.ones(4, 4), torch.eye(4)])
def test_sampling_the_hidden_part_again_with_the_same_numbers_restores_it(scheme, mask):
    """Known tokens fill the cache as sampled ones would: the prefill and all steps agree."""
    pipe = build_scheme(scheme)
    for schedule in (None, {"name": "attention", "start": 1.5, "weight": 0.5}):
        original = run(pipe, guidance_schedule=schedule)
        again = run(pipe, ids=original, mask_image=mask, guidance_schedule=schedule)
        assert torch.equal(again, original)


def test_only_the_steps_between_first_and_last_change_run():
    pipe, steps = build_scheme("token"), []
    original = run(pipe)

    def note(_, step, token, kwargs):
        steps.append(step)
        return {}

    run(pipe, ids=original, mask_image=SPOT, callback_on_step_end=note)
    assert steps == list(range(5, 11))
    steps.clear()
    nothing = run(pipe, ids=original, mask_image=torch.zeros(4, 4), callback_on_step_end=note)
    assert torch.equal(nothing, original)
    assert steps == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_image_is_edited_as_its_ids(scheme):
    pipe = build_scheme(scheme)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ids = pipe.vq_model.encode(pixels * 2 - 1).ids
    by_image = run(pipe, init_image=pixels, mask_image=LOWER)
    assert torch.equal(by_image, run(pipe, ids=ids, mask_image=LOWER))
    assert torch.equal(by_image[:, :2], ids[:, :2].expand_as(by_image[:, :2]))


def test_pil_images_and_masks_are_brought_to_size():
    pipe = build_scheme("token")
    image = Image.effect_noise((16, 16), 80).convert("RGB")
    mask = Image.new("L", (160, 160))
    ImageDraw.Draw(mask).rectangle([40, 40, 119, 119], fill=255)
    expected = run(pipe, init_image=image, mask_image=SPOT)
    assert torch.equal(run(pipe, init_image=image, mask_image=mask), expected)
    assert torch.equal(run(pipe, init_image=[image, image], mask_image=[mask, mask]), expected)
    large = image.resize((64, 48), Image.Resampling.NEAREST).convert("RGBA")
    assert run(pipe, init_image=large, mask_image=mask).shape == (2, 4, 4)


def test_a_token_changes_if_any_of_its_pixels_does():
    mask = torch.zeros(16, 16)
    mask[5, 14] = 1
    assert token_mask(mask, 4).nonzero().tolist() == [[0, 1, 3]]
    assert token_mask(mask.expand(3, 1, 16, 16), 4).shape == (3, 4, 4)
    assert torch.equal(token_mask(SPOT, 4)[0], SPOT)
    with pytest.raises(ValueError, match=r"mask_image has shape \(1, 3, 4, 4\)"):
        token_mask(torch.zeros(1, 3, 4, 4), 4)


def test_every_image_has_its_own_mask():
    pipe = build_scheme("cluster")
    before = run(pipe)
    masks = torch.stack([SPOT, LOWER])
    after = run(pipe, seed=10, ids=before, mask_image=masks)
    assert not changed(before, after)[~masks].any()
    for i, label in enumerate((1, 2)):
        alone = run(pipe, (label,), seed=10 + i, ids=before[i : i + 1], mask_image=masks[i])
        assert torch.equal(alone[0], after[i])
    many = run(pipe, ids=before, mask_image=SPOT, num_images_per_prompt=3)
    assert not changed(before.repeat_interleave(3, 0), many)[:, ~SPOT].any()


def test_strength_is_the_share_that_changes():
    redo = torch.ones(2, 16, dtype=torch.bool)
    redo[1, :8] = False
    uniforms = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    thinned = thin_mask(redo, 0.5, uniforms)
    assert thinned.sum(-1).tolist() == [8, 4]
    assert not (thinned & ~redo).any()
    assert torch.equal(thinned[0], uniforms[0] <= uniforms[0].median())
    pipe = build_scheme("token")
    before = run(pipe)
    for strength in (0.0, 0.25, 0.9):
        after = run(pipe, (3, 0), seed=10, ids=before, strength=strength)
        moved = changed(before, after).flatten(1).sum(-1)
        assert (moved <= round(16 * strength)).all()
        assert (moved >= 16 * strength * 0.5).all()
    both = run(pipe, (3, 0), seed=10, ids=before, strength=0.5, mask_image=LOWER)
    assert not changed(before, both)[:, ~LOWER].any()


def test_variation_looks_at_its_class():
    pipe = build_scheme("token")
    before = run(pipe, temperature=0)
    same = run(pipe, ids=before, mask_image=LOWER, temperature=0)
    other = run(pipe, (3, 0), ids=before, mask_image=LOWER, temperature=0)
    assert torch.equal(same, before)
    assert not torch.equal(other[:, 2:], before[:, 2:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_redraw_keeps_the_clusters_and_changes_the_details(scheme):
    pipe = build_scheme(scheme)
    ids, clusters = run(pipe), run(pipe, output_type="clusters")
    labels = {} if scheme in ("token", "cluster") else {"class_labels": [1, 2]}
    settings = {"generator": torch.Generator().manual_seed(5), "output_type": "ids"} | labels
    for given in ({"clusters": clusters}, {"ids": ids}):
        new = pipe.redraw(**given, num_images_per_prompt=3, **settings).images
        assert len(new) == 6
        assert changed(ids.repeat_interleave(3, 0), new).float().mean() > 0.2
        found = new[..., 0] if new.ndim == 4 else pipe.cluster_map.to_clusters(new)
        assert torch.equal(found, clusters.repeat_interleave(3, 0))
    images = pipe.redraw(clusters=clusters, **settings | {"output_type": "pil"}).images
    assert [image.size for image in images] == [(16, 16)] * 2
    plain = pipe.redraw(clusters=clusters, return_dict=False, **settings)
    assert isinstance(plain, tuple)


def test_redraw_with_the_same_numbers_restores_the_second_stage():
    for scheme in ("cluster_token", "semantic_detail"):
        pipe = build_scheme(scheme)
        generator = torch.Generator().manual_seed(3)
        first = pipe(1, generator=generator, output_type="ids").images
        clusters = first[..., 0] if first.ndim == 4 else pipe.cluster_map.to_clusters(first)
        again = pipe.redraw(
            clusters=clusters,
            class_labels=1,
            generator=generator.manual_seed(3),
            output_type="ids",
        ).images
        assert torch.equal(again, first)
        greedy = {"temperature": 0.0}
        other = pipe.redraw(
            clusters=clusters,
            class_labels=1,
            generator=generator.manual_seed(3),
            output_type="ids",
            **greedy,
        ).images
        assert not torch.equal(other, first)


def test_same_clusters_given_to_a_call_change_nothing_of_a_plain_run():
    for scheme in SCHEMES:
        pipe = build_scheme(scheme)
        assert torch.equal(run(pipe), run(pipe, strength=1.0))


IDS = torch.zeros(1, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_image": torch.zeros(1, 3, 16, 16), "ids": IDS}, "give one of init_image, ids"),
        ({"mask_image": LOWER}, "mask_image and strength need an init_image or ids"),
        ({"strength": 0.5}, "mask_image and strength need an init_image or ids"),
        ({"ids": IDS}, "everything would change: give mask_image, or a strength below 1"),
        ({"ids": IDS, "strength": 1.5}, r"strength=1\.5 must be between 0 and 1"),
        ({"ids": IDS.mT[:, :3], "strength": 0.5}, r"ids must have shape \(B, 4, 4\), got"),
        ({"ids": IDS.expand(3, 4, 4), "strength": 0.5}, "3 initial images were given for 2 im"),
        ({"ids": IDS, "mask_image": torch.zeros(3, 4, 4)}, "3 masks were given for 2 images"),
        ({"clusters": IDS}, "scheme 'token' has one stage; clusters are for two"),
        ({"ids": IDS + 32, "strength": 0.5}, r"id 32 is outside 0\.\.31"),
    ],
)
def test_edits_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(build_scheme("token"), **settings)


@pytest.mark.parametrize("build", [build_scheme, build_text_pipeline])
def test_a_tensor_without_a_name_is_refused(build):
    with pytest.raises(TypeError, match=r"redraw\(clusters=\.\.\.\) or redraw\(ids=\.\.\.\)"):
        build("cluster").redraw(IDS)


def test_latents_is_another_name_of_ids():
    pipe = build_scheme("cluster")
    before = run(pipe)
    kept = {"mask_image": SPOT, "seed": 10}
    assert torch.equal(run(pipe, latents=before, **kept), run(pipe, ids=before, **kept))
    runs = [
        pipe.redraw(generator=torch.Generator().manual_seed(0), output_type="ids", **given).images
        for given in ({"ids": before}, {"latents": before})
    ]
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match="latents is another name of ids; give one of the two"):
        run(pipe, ids=before, latents=before, **kept)
    with pytest.raises(ValueError, match="latents is another name of ids"):
        pipe.redraw(ids=before, latents=before)


def text_run(pipe, prompts=("a red dog", "the blue house"), seed: int = 0, **settings):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    settings = {"output_type": "ids", "guidance_scale": 2.0} | settings
    return pipe(list(prompts), generator=generators, **settings).images


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mask", [SPOT, LOWER])
def test_images_of_captions_are_edited_too(scheme, mask):
    pipe = build_text_pipeline(scheme)
    before = text_run(pipe)
    for schedule in (None, {"name": "attention", "start": 1.5, "weight": 0.5}):
        first = text_run(pipe, guidance_schedule=schedule)
        again = text_run(pipe, ids=first, mask_image=mask, guidance_schedule=schedule)
        assert torch.equal(again, first)  # the cache is filled as sampling fills it
    after = text_run(pipe, seed=10, ids=before, mask_image=mask)
    moved = changed(before, after)
    assert not moved[:, ~mask].any()
    assert moved[:, mask].float().mean() > 0.4
    thinned = text_run(pipe, seed=10, ids=before, mask_image=mask, strength=0.5)
    assert 0 < changed(before, thinned).float().sum() <= mask.sum()
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ids = pipe.vq_model.encode(pixels * 2 - 1).ids
    by_image = text_run(pipe, init_image=pixels, mask_image=mask)
    assert torch.equal(by_image, text_run(pipe, ids=ids, mask_image=mask))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_redraw_of_captions_keeps_the_clusters(scheme):
    pipe = build_text_pipeline(scheme)
    ids, clusters = text_run(pipe), text_run(pipe, output_type="clusters")
    text = {"prompt": ["a red dog", "the blue house"]} if pipe.transformer.scheme.two_stages else {}
    for given in ({"clusters": clusters}, {"ids": ids}):
        generator = torch.Generator().manual_seed(5)
        call = {"num_images_per_prompt": 3, "generator": generator, "output_type": "ids"}
        new = pipe.redraw(**given, **text, **call).images
        assert changed(ids.repeat_interleave(3, 0), new).float().mean() > 0.2
        found = new[..., 0] if new.ndim == 4 else pipe.cluster_map.to_clusters(new)
        assert torch.equal(found, clusters.repeat_interleave(3, 0))
    assert torch.equal(
        pipe.redraw(clusters=clusters, **text, output_type="clusters").images, clusters
    )
    one = {"prompt": "a red dog"} if text else {}
    assert len(pipe.redraw(ids=ids, **one).images) == 2
    if text:
        embeds, mask = pipe.encode_prompt(text["prompt"])
        by_embeds, by_text = (
            pipe.redraw(
                ids=ids, generator=torch.Generator().manual_seed(5), output_type="ids", **given
            ).images
            for given in ({"prompt_embeds": embeds, "prompt_attention_mask": mask}, text)
        )
        assert torch.equal(by_embeds, by_text)
        with pytest.raises(ValueError, match=r"redraw of scheme .* needs a prompt"):
            pipe.redraw(ids=ids)
    else:
        with pytest.raises(ValueError, match="takes no top_k"):
            pipe.redraw(ids=ids, top_k=3)


def test_a_refiner_that_reads_the_generators_states_redraws_captions():
    pipe = build_text_pipeline("cluster", refiner=build_refiner(**REFINERS["MASC"]))
    clusters = text_run(pipe, output_type="clusters")
    call = {"clusters": clusters, "refine": "refiner", "output_type": "ids"}
    one, other = (
        pipe.redraw(prompt=prompt, generator=torch.Generator().manual_seed(0), **call).images
        for prompt in ("a red dog", "the blue house")
    )
    assert torch.equal(pipe.cluster_map.to_clusters(one), clusters)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match=r"reads the generator's states"):
        pipe.redraw(**call)


def test_redraws_that_make_no_sense_are_refused():
    pipe = build_scheme("cluster_token")
    with pytest.raises(ValueError, match="give one of the two"):
        pipe.redraw()
    with pytest.raises(ValueError, match="redraw of scheme 'cluster_token' needs class_labels"):
        pipe.redraw(clusters=IDS)
    with pytest.raises(ValueError, match=r"clusters must have shape \(B, 4, 4\)"):
        pipe.redraw(clusters=IDS[..., 0], class_labels=1)
    with pytest.raises(ValueError, match=r"cluster 12 is outside 0\.\.11"):
        pipe.redraw(clusters=IDS + 12, class_labels=1)
    with pytest.raises(ValueError, match="output_type='video' must be one of"):
        build_scheme("cluster").redraw(clusters=IDS, output_type="video")
    with pytest.raises(ValueError, match=r"refine='refiner' must be one of .* none is loaded"):
        pipe.redraw(clusters=IDS, class_labels=1, refine="refiner")
    with pytest.raises(ValueError, match="takes no guidance_scale"):
        build_scheme("cluster").redraw(clusters=IDS, guidance_scale=2.0)
    bare = build_scheme("token")
    bare.cluster_map = None
    with pytest.raises(ValueError, match="needs a cluster_map or a two-stage transformer"):
        bare.redraw(clusters=IDS)
