"""CodecladePipeline on a tiny model of each scheme: what it returns, and what it refuses.

Callbacks are in test_pipeline_callbacks.py, saving and loading in test_pipeline_files.py.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from builders import SCHEMES, build_refiner, build_scheme
from codeclade import CodecladePipeline
from codeclade.components.generation import draw_uniforms
from codeclade.components.labels import ids_by_name, label_id
from codeclade.components.sampling import guide, image_seeds, noise_seeds, sample_with_noise

SIZE, GRID, TOKENS = 16, 4, 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["token", "cluster"])
def pipe(request, tiny_pipeline) -> CodecladePipeline:
    return tiny_pipeline(request.param)


@pytest.fixture
def clustered(tiny_pipeline) -> CodecladePipeline:
    return tiny_pipeline("cluster")


@pytest.fixture
def ids_of(pipe):
    """Fine ids (B, G, G) of one call of `pipe`."""
    return lambda *args, **kwargs: pipe(*args, output_type="latent", **kwargs).images


def naive_tokens(pipe, labels, generator, scale, temperature, top_k, top_p) -> torch.Tensor:
    """The same images without cache and without batched guidance."""
    labels = torch.tensor(labels)
    seeds = noise_seeds(image_seeds(len(labels), generator), 1, TOKENS)[:, 0]
    null = torch.full_like(labels, 5)
    tokens = torch.zeros(len(labels), 0, dtype=torch.int64)
    for step in range(TOKENS):
        logits = pipe.transformer(tokens, labels).logits[:, -1]
        if scale > 1:
            logits = guide(logits, pipe.transformer(tokens, null).logits[:, -1], scale)
        token = sample_with_noise(logits, seeds[:, step], temperature, top_k, top_p)
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    return tokens.view(-1, GRID, GRID)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_tokens_equal_a_loop_without_cache(pipe, scale):
    settings = {"temperature": 1.3, "top_k": 9, "top_p": 0.95}
    kind = "cluster" if pipe.cluster_map is not None else "latent"
    images = pipe([2, 0, 4], scale, generator=seeded(), output_type=kind, **settings).images
    assert torch.equal(images, naive_tokens(pipe, [2, 0, 4], seeded(), scale, **settings))
    assert len(images.unique()) > 4


@pytest.mark.parametrize("count", [1, 2])
def test_types_shapes_and_ranges_of_the_output(pipe, count):
    call = {"class_labels": [0, 2, 3], "num_images_per_prompt": count}
    images = pipe(**call, generator=seeded()).images
    assert len(images) == 3 * count
    assert all(isinstance(image, Image.Image) and image.size == (SIZE, SIZE) for image in images)
    array = pipe(**call, generator=seeded(), output_type="np").images
    assert isinstance(array, np.ndarray)
    assert array.shape == (3 * count, SIZE, SIZE, 3)
    tensor = pipe(**call, generator=seeded(), output_type="pt").images
    assert tensor.shape == (3 * count, 3, SIZE, SIZE)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() < tensor.max() <= 1
    np.testing.assert_allclose(array, tensor.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.stack(images) / 255, array, atol=0.51 / 255)
    ids = pipe(**call, generator=seeded(), output_type="latent").images
    assert ids.shape == (3 * count, GRID, GRID)
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < 32


def test_latent_output_decodes_to_the_images(pipe, ids_of):
    images = pipe([1, 2], generator=seeded(), output_type="pt").images
    with torch.no_grad():
        decoded = pipe.vq_model.decode(ids_of([1, 2], generator=seeded()))
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


def test_cluster_output_holds_the_clusters_of_the_ids(clustered, tiny_pipeline):
    call = {"class_labels": [0, 1, 2, 3], "top_k": 0, "temperature": 3.0}
    clusters = clustered(**call, generator=seeded(), output_type="cluster").images
    ids = clustered(**call, generator=seeded(), output_type="latent").images
    assert clusters.shape == (4, GRID, GRID)
    assert torch.equal(clustered.cluster_map.to_clusters(ids), clusters)
    first = clustered.cluster_map.members
    assert (ids != torch.tensor([first(c)[0] for c in clusters.flatten()]).view_as(ids)).any()
    with_map = CodecladePipeline(
        clustered.vq_model, tiny_pipeline("token").transformer, clustered.cluster_map
    )
    ids = with_map(**call, generator=seeded(), output_type="latent").images
    clusters = with_map(**call, generator=seeded(), output_type="cluster").images
    assert torch.equal(clusters, clustered.cluster_map.to_clusters(ids))


def test_members_are_drawn_uniformly_and_independently_of_the_clusters(clustered):
    call = {"num_images_per_prompt": 2000, "guidance_scale": 1.0, "temperature": 2.0}
    ids = clustered(0, generator=seeded(), output_type="latent", **call).images[:, 0, 0]
    tested = 0
    for cluster in range(12):
        members = clustered.cluster_map.members(cluster)
        counts = ids.bincount(minlength=32)[members]
        if len(members) > 1 and counts.sum() > 100:
            assert chisquare(counts).pvalue > 1e-3, cluster
            tested += 1
    assert tested > 2


def test_plain_tuple_on_request(pipe):
    output = pipe(1, generator=seeded(), output_type="pt", return_dict=False)
    assert type(output) is tuple
    assert len(output) == 1
    assert torch.equal(output[0], pipe(1, generator=seeded(), output_type="pt").images)


def test_same_seed_same_image_other_seed_other_image(ids_of):
    assert torch.equal(ids_of(2, generator=seeded(3)), ids_of(2, generator=seeded(3)))
    assert not torch.equal(ids_of(2, generator=seeded(3)), ids_of(2, generator=seeded(4)))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_batch_equals_its_images_made_alone(ids_of, scale):
    labels, seeds = [3, 0, 2, 2], [5, 6, 7, 8]
    batch = ids_of(labels, scale, generator=[seeded(seed) for seed in seeds])
    for label, seed, image in zip(labels, seeds, batch, strict=True):
        assert torch.equal(ids_of(label, scale, generator=seeded(seed))[0], image)
    alone = ids_of(3, scale, generator=seeded(5))
    assert torch.equal(ids_of(labels, scale, generator=seeded(5))[:1], alone)


def test_images_of_one_prompt_differ_and_come_in_label_order(ids_of):
    several = ids_of([0, 3], num_images_per_prompt=3, generator=seeded())
    assert len(several.unique(dim=0)) == 6
    assert torch.equal(several, ids_of([0, 0, 0, 3, 3, 3], generator=seeded()))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_temperature_zero_takes_the_most_likely_token(tiny_pipeline, scale):
    pipe = tiny_pipeline("token")
    call = {"temperature": 0, "output_type": "latent", "guidance_scale": scale}
    first = pipe([1, 4], generator=seeded(0), **call).images
    assert torch.equal(first, pipe([1, 4], generator=seeded(1), **call).images)
    with torch.no_grad():
        expected = naive_tokens(pipe, [1, 4], seeded(), scale, 0, 0, 1.0)
    assert torch.equal(first, expected)


def test_guidance_is_active_above_one_only(pipe, ids_of):
    batches = []

    def count_rows(module, args, output):
        if output.last_hidden_state is not None:  # else a stage's logits were asked for
            batches.append(len(output.last_hidden_state))

    hook = pipe.transformer.register_forward_hook(count_rows)
    images = {}
    for scale, rows in ((0.0, 2), (0.5, 2), (1.0, 2), (1.1, 4), (4.0, 4)):
        batches.clear()
        images[scale] = ids_of([0, 1], scale, generator=seeded())
        assert set(batches) == {rows}
        assert len(batches) == TOKENS
        assert pipe.guidance_scale == scale
        assert pipe.do_classifier_free_guidance == (scale > 1)
    hook.remove()
    assert torch.equal(images[0.0], images[1.0])
    assert not torch.equal(images[1.0], images[4.0])


def test_saved_defaults_are_used_where_nothing_is_given(tiny_pipeline):
    settings = {"guidance_scale": 3.0, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    pipe, bare = tiny_pipeline("token", **settings), tiny_pipeline("token")
    images = pipe([0, 1], generator=seeded(), output_type="latent").images
    expected = bare([0, 1], generator=seeded(), output_type="latent", **settings).images
    assert torch.equal(images, expected)
    assert pipe.guidance_scale == 3.0
    pipe([0], guidance_scale=1.0)
    assert pipe.config.guidance_scale == 3.0
    assert pipe([0, 1], top_p=1.0, generator=seeded(), output_type="latent").images.shape


def test_half_precision_output_is_finite(pipe):
    half = pipe.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    images = half([0, 1], 2.0, generator=seeded(), output_type="pt").images
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.std() > 0


def test_components_are_not_changed_by_a_call(pipe):
    before = {
        f"{name}.{key}": value.clone()
        for name, part in pipe.components.items()
        if part is not None
        for key, value in part.state_dict().items()
    }
    pipe([0, 1], generator=seeded())
    for name, value in before.items():
        part, key = name.split(".", 1)
        assert torch.equal(getattr(pipe, part).state_dict()[key], value), name


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (2, [2]),
        ("golden retriever", [2]),
        ("  Golden Retriever ", [2]),
        ("goldfish", [0]),
        ("carassius auratus", [0]),
        ("goldfish, Carassius auratus", [0]),
        ("tabby cat", [1]),
        (["tabby", 4, "goldfish"], [1, 4, 0]),
        ((3, 3), [3, 3]),
        (torch.tensor([1, 2]), [1, 2]),
    ],
)
def test_class_ids_names_and_synonyms(clustered, labels, expected):
    assert clustered.get_label_ids(labels) == expected


def test_classes_are_named_in_the_order_of_their_ids():
    # As a saved pipeline has them: JSON with sorted keys puts "10" before "2".
    names = ids_by_name({str(label): f"kind {label}" for label in sorted(map(str, range(12)))})
    with pytest.raises(ValueError, match=r"known: kind 0, kind 1, kind 2, .*kind 9, kind 10"):
        label_id("hamster", 12, names)


def test_names_and_ids_make_the_same_images(ids_of):
    assert torch.equal(
        ids_of(["tabby", "golden retriever"], generator=seeded()),
        ids_of([1, 2], generator=seeded()),
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("golden retreiver", "unknown class name 'golden retreiver'; did you mean golden ret"),
        ("cat", "unknown class name 'cat'; did you mean .*tabby cat"),
        ("rabbit hamster", "unknown class name 'rabbit hamster'; known: "),  # like "tabby cat" only
        ("xyzzy", "unknown class name 'xyzzy'; known: .*tabby"),
        ("", "unknown class name ''"),
        ("crane", r"'crane' means several classes; give one of ids \[3, 4\]"),
        ([], "class_labels is empty"),
        (5, r"class id 5 is outside 0\.\.4"),
        ([0, -1], r"class id -1 is outside 0\.\.4"),
        (1.0, "class label 1.0 must be a class name or an integer id"),
        (True, "class label True must be"),
        (None, "class label None must be"),
    ],
)
def test_labels_that_mean_no_class_are_refused(clustered, labels, message):
    with pytest.raises(ValueError, match=message):
        clustered(labels)


def test_names_need_a_pipeline_with_names(tiny_pipeline):
    with pytest.raises(ValueError, match=r"no class names; give an id 0\.\.4"):
        tiny_pipeline(id2label=None)("goldfish")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": -0.1}, "guidance_scale=-0.1 must be 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf must be 0 or more and finite"),
        ({"temperature": -1}, "temperature=-1 must be 0"),
        ({"temperature": float("inf")}, "temperature=inf must be 0"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0}, "top_p=0 must be above 0, up to 1"),
        ({"top_p": 1.1}, "top_p=1.1 must be above 0, up to 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0 must be 1 or more"),
        ({"output_type": "jpg"}, "output_type='jpg' must be one of .*'pil'"),
        ({"generator": [seeded(), seeded()]}, "2 generators were given for 1 images"),
        (
            {
                "callback_on_step_end": lambda *_: None,
                "callback_on_step_end_tensor_inputs": ["logits"],
            },
            "callback_on_step_end_tensor_inputs.*logits.*tokens",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(clustered, arguments, message):
    with pytest.raises(ValueError, match=message):
        clustered(0, **arguments)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_way_of_refining_that_does_not_exist_is_refused_before_sampling(scheme):
    pipe, steps = build_scheme(scheme), []
    pipe.transformer.register_forward_hook(lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=r"refine='bogus' must be one of .*; .* none is loaded"):
        pipe(0, refine="bogus")
    with pytest.raises(ValueError, match=r"refine='refiner' must be one of .* none is loaded"):
        pipe(0, refine="refiner")
    assert not steps
    pipe(0, refine="member")
    assert steps


def test_a_refiner_is_for_transformers_that_predict_clusters():
    pipe = build_scheme("token", refiner=build_refiner())
    with pytest.raises(ValueError, match="predict clusters, not for scheme 'token'"):
        pipe(0, refine="refiner")
    ids = pipe(0, output_type="ids").images
    assert pipe.redraw(ids=ids, class_labels=0, refine="refiner").images


@pytest.mark.parametrize(("name", "alias"), [("ids", "latent"), ("clusters", "cluster")])
def test_other_names_of_the_output_types_mean_the_same(clustered, name, alias):
    runs = [clustered([0, 1], output_type=kind, generator=seeded()) for kind in (name, alias)]
    assert torch.equal(runs[0].images, runs[1].images)


def test_the_steps_of_a_call_can_be_taken_one_by_one(pipe):
    """As the README of diffusers' pipelines has it: the call is nothing but its public steps."""
    settings = pipe.check_inputs(2.0, 1.0, 0, 1.0, 1, "ids")
    condition, null_condition = pipe.encode_condition([1, 2])
    draws = draw_uniforms(2, pipe.transformer, seeded())
    edit = pipe.prepare_edit(draws)
    assert edit is None
    tokens = pipe.sample_tokens(condition, null_condition, draws, settings, edit)
    ids = pipe.decode(tokens, draws.members, "ids")
    assert not pipe.decode(tokens, draws.members, "pt").requires_grad
    assert torch.equal(ids, pipe([1, 2], 2.0, output_type="ids", generator=seeded()).images)


def test_cluster_output_needs_a_map(tiny_pipeline):
    with pytest.raises(ValueError, match="output_type='cluster' needs a cluster_map"):
        tiny_pipeline("token")(0, output_type="cluster")
