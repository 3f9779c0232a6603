"""CodecladeTextPipeline: the published sampling, a tiny T5, round trips, errors."""

import pytest
import torch

from builders import PREFIX, TEXT_DIM, build_t5, build_text_pipeline, build_tokenizer
from codeclade import CodecladePipeline
from codeclade.checkpoints.llamagen import FAMILY as LLAMAGEN
from codeclade.components.text_pipeline import CodecladeTextPipeline, pad_left
from golden_weights import golden_case


@pytest.fixture
def text_pipeline():
    """Build a pipeline, with or without text encoder."""
    return build_text_pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("scale", "name"), [(1.0, "greedy"), (4.0, "greedy_cfg4")])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_equals_the_published_sampling(scale, name, padding, tiny_vq):
    _, weights, reference = golden_case("llamagen_gpt_t2i")
    transformer = LLAMAGEN.generator.build(weights, grid_size=4, num_attention_heads=4)
    pipe = CodecladeTextPipeline(tiny_vq(codebook_size=192), transformer)
    pipe.set_progress_bar_config(disable=True)
    embeds, mask = reference["caption"], reference["mask"]
    if padding == "right":  # as an encoder returns it
        order = mask.argsort(dim=1, descending=True, stable=True)
        mask = mask.gather(1, order)
        embeds = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds))
    ids = pipe(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        guidance_scale=scale,
        temperature=0.0,
        top_k=0,
        output_type="latent",
    ).images
    assert torch.equal(ids.flatten(1), reference[name])


def test_pad_left_moves_the_caption_and_nothing_else():
    embeds = torch.arange(1.0, 9).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    moved, moved_mask = pad_left(embeds, mask, 5)
    assert moved.flatten(1).tolist() == [[0, 0, 0, 1, 2], [0, 0, 6, 7, 8]]
    assert moved_mask.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_a_prompt_equals_its_embeddings(text_pipeline):
    pipe = text_pipeline()
    prompts = ["a red dog", "the house on the beach"]
    by_text = pipe(prompts, generator=seeded(), output_type="latent").images
    embeds, mask = pipe.encode_prompt(prompts)
    assert mask.sum(1).tolist() == [4, 6]  # the end token counts
    assert pipe.encode_prompt([""])[1].sum() == 1
    by_embeds = text_pipeline(encoder=False)(
        prompt_embeds=embeds.detach(),
        prompt_attention_mask=mask,
        generator=seeded(),
        output_type="latent",
    ).images
    assert torch.equal(by_text, by_embeds)


def test_padding_has_no_influence(text_pipeline):
    pipe = text_pipeline(encoder=False)
    embeds = torch.randn(1, PREFIX, TEXT_DIM, generator=seeded())
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    settings = {"prompt_attention_mask": mask, "output_type": "latent"}
    first = pipe(prompt_embeds=embeds, generator=seeded(), **settings).images
    noisy = torch.where(mask.bool().unsqueeze(-1), embeds, 9.0)
    assert torch.equal(pipe(prompt_embeds=noisy, generator=seeded(), **settings).images, first)
    changed = embeds.clone()
    changed[0, 1] += 3
    other = pipe(prompt_embeds=changed, generator=seeded(), temperature=0.5, **settings).images
    base = pipe(prompt_embeds=embeds, generator=seeded(), temperature=0.5, **settings).images
    assert not torch.equal(other, base)


def test_negative_prompts_replace_the_learned_null(text_pipeline):
    pipe = text_pipeline()
    settings = {"output_type": "latent", "temperature": 0.0, "guidance_scale": 6.0}
    plain = pipe("a red dog", **settings).images
    away = pipe("a red dog", negative_prompt="blue house", **settings).images
    assert not torch.equal(plain, away)
    # Guidance away from the prompt itself is no guidance at all.
    same = pipe("a red dog", negative_prompt="a red dog", **settings).images
    assert torch.equal(same, pipe("a red dog", **(settings | {"guidance_scale": 1.0})).images)


def test_an_image_depends_on_its_own_prompt_and_seed_alone(text_pipeline):
    pipe = text_pipeline()
    prompts = ["a red dog", "the blue house"]
    both = pipe(prompts, generator=[seeded(1), seeded(2)], output_type="latent").images
    alone = pipe(prompts[1], generator=[seeded(2)], output_type="latent").images
    assert torch.equal(both[1:], alone)
    many = pipe(prompts, num_images_per_prompt=2, generator=seeded(), output_type="pt").images
    assert many.shape == (4, 3, 16, 16)


def test_neither_pipeline_is_a_kind_of_the_other(text_pipeline):
    assert not issubclass(CodecladeTextPipeline, CodecladePipeline)
    assert not issubclass(CodecladePipeline, CodecladeTextPipeline)
    pipe = text_pipeline()
    for name in ("labels", "get_label_ids"):  # captions have no classes
        assert not hasattr(pipe, name)
    public = {name for name in dir(CodecladePipeline) if not name.startswith("_")}
    steps = ["check_inputs", "encode_condition", "prepare_edit", "sample_tokens", "decode"]
    assert set(steps) <= public
    assert public - set(dir(pipe)) == {"labels", "get_label_ids"}


def test_a_callback_sees_and_changes_the_tokens(text_pipeline):
    pipe, seen = text_pipeline(), []

    def zero(_, step, token, kwargs):
        seen.append(list(kwargs))
        return {"tokens": torch.zeros_like(kwargs["tokens"])}

    call = {"callback_on_step_end": zero, "output_type": "ids"}
    assert not pipe("a dog", **call).images.any()
    assert seen == [["tokens", "latents"]] * 16
    with pytest.raises(ValueError, match=r"\['nope'\] must be among \['tokens', 'latents'\]"):
        pipe("a dog", **call, callback_on_step_end_tensor_inputs=["nope"])
    assert len(seen) == 16


@pytest.mark.parametrize("scheme", ["token", "cluster"])
def test_a_preview_ends_as_the_image(scheme):
    pipe, shown = build_text_pipeline(scheme), []

    def show(pipe, step, token, kwargs):
        shown.append(pipe.preview(kwargs["tokens"], step + 1, seeded(3)))

    images = pipe("a red dog", generator=seeded(3), callback_on_step_end=show).images
    assert len(shown) == 16
    assert shown[-1][0].tobytes() == images[0].tobytes()
    assert shown[4][0].tobytes() != images[0].tobytes()


def test_save_and_load(text_pipeline, tmp_path):
    pipe = text_pipeline(guidance_scale=3.0, top_k=9)
    expected = pipe("a red dog", generator=seeded(), output_type="latent").images
    pipe.save_pretrained(tmp_path / "full")
    loaded = CodecladeTextPipeline.from_pretrained(tmp_path / "full")
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.config.guidance_scale, loaded.config.top_k) == (3.0, 9)
    again = loaded("a red dog", generator=seeded(), output_type="latent").images
    assert torch.equal(again, expected)

    text_pipeline(encoder=False).save_pretrained(tmp_path / "bare")
    bare = CodecladeTextPipeline.from_pretrained(tmp_path / "bare")
    assert bare.text_encoder is None
    given = CodecladeTextPipeline.from_pretrained(
        tmp_path / "bare", tokenizer=build_tokenizer(), text_encoder=build_t5()
    )
    assert given.text_encoder is not None


def test_default_sampling_is_the_published_one(text_pipeline):
    config = text_pipeline().config
    assert (config.guidance_scale, config.temperature, config.top_k) == (7.5, 1.0, 1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either prompt or prompt_embeds"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt_embeds": torch.zeros(1, 9, 16)}, r"\(B, up to 8, 16\), got \(1, 9, 16\)"),
        ({"prompt_embeds": torch.zeros(1, 4, 5)}, "must have width 16, got 5"),
        (
            {
                "prompt_embeds": torch.zeros(1, 4, 16),
                "prompt_attention_mask": torch.zeros(1, 4),
            },
            "a 1 in every row",
        ),
        ({"prompt": "a dog", "negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"prompt": "a dog", "top_k": -1}, "top_k=-1 must be"),
        ({"prompt": "a dog", "refine": "bogus"}, "refine='bogus' must be one of"),
        ({"prompt": "a dog", "strength": 0.5}, "strength need an init_image or ids to change"),
        ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "1 generators .* 2 images"),
    ],
)
def test_errors_name_the_argument(arguments, message, text_pipeline):
    with pytest.raises(ValueError, match=message):
        text_pipeline()(**arguments)


def test_parts_that_do_not_fit_are_refused(text_pipeline, tiny_vq, tiny_transformer):
    with pytest.raises(ValueError, match="has no text encoder"):
        text_pipeline(encoder=False)("a dog")
    with pytest.raises(ValueError, match="conditioned on 5 classes, not on text"):
        CodecladeTextPipeline(tiny_vq(), tiny_transformer())
    transformer = text_pipeline().transformer
    with pytest.raises(ValueError, match="give both or neither"):
        CodecladeTextPipeline(tiny_vq(), transformer, tokenizer=build_tokenizer())
    with pytest.raises(ValueError, match=r"width 24, but transformer takes .* 16"):
        CodecladeTextPipeline(tiny_vq(), transformer, build_tokenizer(), build_t5(24))
