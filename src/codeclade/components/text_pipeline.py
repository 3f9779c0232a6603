"""CodecladeTextPipeline: captions to images with a T5 encoder, VQ tokenizer and generator.

LlamaGen's text-conditional models (arXiv 2406.06525): 120 FLAN-T5-XL features of the caption are
the generator's prefix, padded on the left and masked. The steps of a call are public, and but for
the condition the same as CodecladePipeline's; see pipeline_steps.py.
Must stay numerically equal to the published t2i_*.pt (see checkpoints/).

Shapes: B images, P prefix positions, T = G * G tokens, C width of the text features.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.doc_utils import replace_example_docstring
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from .batch_memory import memory_limit
from .call_checks import TOKEN_NAMES
from .cluster_map import ClusterMap
from .editing import check_edit, refuse_positional, spread, truthful
from .guidance import Number
from .pipeline_steps import PipelineSteps
from .refiner import Refiner
from .transformer import CodecladeTransformer
from .vq_model import VQModel

TEXT_EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from transformers import AutoTokenizer, T5EncoderModel
        >>> from codeclade import CodecladeTextPipeline

        >>> t5 = "google/flan-t5-xl"
        >>> pipe = CodecladeTextPipeline.from_pretrained(
        ...     "llamagen-t2i-xl-512",
        ...     tokenizer=AutoTokenizer.from_pretrained(t5),
        ...     text_encoder=T5EncoderModel.from_pretrained(t5),
        ... )
        >>> image = pipe("a golden retriever on a beach").images[0]
        ```
"""


LLAMAGEN_PREFIX = 120  # positions of a caption in LlamaGen's models


def pad_left(embeds: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Features (B, length, C) and mask (B, length) with the valid positions at the right end.

    Args:
        embeds: (B, n, C) features, n up to `length`, padded on either side.
        mask: (B, n) 1 where a feature is valid.

    The valid features keep their order; all others become zero.
    """
    # A stable sort by validity moves padding to the front from either side, and keeps the order.
    order = mask.long().argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    embeds = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds)) * mask.unsqueeze(-1)
    missing = length - mask.shape[1]
    embeds = torch.nn.functional.pad(embeds, (0, 0, missing, 0))
    return embeds, torch.nn.functional.pad(mask, (missing, 0))


class CodecladeTextPipeline(PipelineSteps, DiffusionPipeline):
    """Text-conditional image generation over codes.

    Args:
        vq_model: the image tokenizer; None: a pipeline that gives ids and clusters only.
        transformer: a generator whose config has a `text_dim`. None: a pipeline that encodes
            captions, for one that is loaded without text encoder afterwards.
        tokenizer, text_encoder: T5's; without them the pipeline takes `prompt_embeds` only.
        cluster_map: needed by the "cluster" scheme.
        refiner: turns clusters into ids; none: uniform random members.
        guidance_scale, temperature, top_k, top_p, guidance_schedule: what `__call__` uses where
            nothing is given.

    Raises:
        ValueError: components that do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->refiner->vq_model"
    _optional_components = ["tokenizer", "text_encoder", "cluster_map", "refiner"]  # noqa: RUF012

    def __init__(
        self,
        vq_model: VQModel | None,
        transformer: CodecladeTransformer | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: T5EncoderModel | None = None,
        cluster_map: ClusterMap | None = None,
        guidance_scale: float = 7.5,
        temperature: float = 1.0,
        top_k: int = 1000,
        top_p: float = 1.0,
        guidance_schedule: str | dict | None = None,
        refiner: Refiner | None = None,
    ):
        super().__init__()
        # Before registering: a wrong text encoder would else be refused by a matrix product.
        check_text_parts(transformer, tokenizer, text_encoder)
        self._set_up(
            {
                "vq_model": vq_model,
                "transformer": transformer,
                "tokenizer": tokenizer,
                "text_encoder": text_encoder,
                "cluster_map": cluster_map,
                "refiner": refiner,
            },
            {
                "guidance_scale": guidance_scale,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "guidance_schedule": guidance_schedule,
            },
        )

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | list[str], max_sequence_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """T5 features (B, n, C) of captions and their mask (B, n), padded on the right.

        Both are what a call takes as `prompt_embeds` and `prompt_attention_mask`.

        Args:
            max_sequence_length: longer captions are cut. None: the transformer's P, to which all
                are padded; in a pipeline without transformer 120, which is LlamaGen's P, and
                captions are padded to the longest of them.

        Raises:
            ValueError: a pipeline without text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds, or load it.")
        # The transformer's own length, so that a mask has a place for every position.
        length, padding = max_sequence_length, "longest"
        if self.transformer is not None and length is None:
            length, padding = self.transformer.config.prefix_length, "max_length"
        tokens = self.tokenizer(
            [prompt] if isinstance(prompt, str) else prompt,
            max_length=length or LLAMAGEN_PREFIX,
            padding=padding,
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        prompt_attention_mask = tokens.attention_mask
        features = self.text_encoder(tokens.input_ids, attention_mask=prompt_attention_mask)
        prompt_embeds = features.last_hidden_state
        return prompt_embeds, prompt_attention_mask

    @torch.no_grad()
    def encode_text(
        self,
        name: str,
        text: str | list[str] | None,
        embeds: Tensor | None,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """`text_embeds` (B, P, C), padded on the left, and `attention_mask` (B, P+T).

        Args:
            name: of the argument, for messages.
            text: captions; or
            embeds: (B, up to P, C) features of a text encoder, padded on either side.
            mask: (B, up to P) 1 where a feature is valid; None: all are.

        Raises:
            ValueError: no text, both or neither given, or tensors of a wrong shape.
        """
        config, device = self.transformer.config, self._execution_device
        text = [text] if isinstance(text, str) else text
        # One of the two, in a shape that the transformer takes.
        if text is not None and len(text) == 0:
            raise ValueError(f"{name} is empty; give at least one caption.")
        if (text is None) == (embeds is None):
            raise ValueError(f"give either {name} or {name}_embeds.")
        features = cast(Tensor, embeds)  # without text they are given
        if text is not None:
            features, mask = self.encode_prompt(text)
        elif features.ndim != 3 or features.shape[1] > config.prefix_length:
            raise ValueError(
                f"{name}_embeds must have shape (B, up to {config.prefix_length}, "
                f"{config.text_dim}), got {tuple(features.shape)}."
            )
        if features.shape[2] != config.text_dim:
            raise ValueError(
                f"{name}_embeds must have width {config.text_dim}, got {features.shape[2]}."
            )
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.int64)
        if mask.shape != features.shape[:2] or not mask.any(1).all():
            raise ValueError(
                f"{name}_attention_mask must have shape {tuple(features.shape[:2])} and a 1 in "
                f"every row, got shape {tuple(mask.shape)}."
            )
        # Tokens of the image are always visible; of the caption, those that are no padding.
        mask = mask.to(device, torch.int64)
        features, mask = pad_left(features.to(device), mask, config.prefix_length)
        image = mask.new_ones(len(mask), config.num_tokens)
        return {"text_embeds": features, "attention_mask": torch.cat([mask, image], dim=1)}

    def encode_condition(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Arguments of the transformer's first call, with the prompt and with the negative one.

        Returns:
            Two dicts of `text_embeds` (B, P, C) and `attention_mask` (B, P+T), B = prompts *
            num_images_per_prompt.
        """
        condition = self.encode_text("prompt", prompt, prompt_embeds, prompt_attention_mask)
        rows = len(condition["text_embeds"])
        # Guidance leads away from the negative prompt, or from the learned empty caption.
        if negative_prompt is None and negative_prompt_embeds is None:
            null = self.transformer.prefix().expand(rows, -1, -1)
            against = condition | {"text_embeds": null.to(condition["text_embeds"])}
        else:
            against = self.encode_text(
                "negative_prompt",
                negative_prompt,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
            )
        # One negative prompt serves all prompts; any other number has no pairing.
        if len(against["text_embeds"]) not in (1, rows):
            raise ValueError(f"{len(against['text_embeds'])} negative prompts for {rows} prompts.")
        # Both halves of the guidance batch need a row for every image.
        both = []
        for part in (condition, against):
            expanded = {name: value.expand(rows, *value.shape[1:]) for name, value in part.items()}
            both.append(
                {
                    name: value.repeat_interleave(num_images_per_prompt, dim=0)
                    for name, value in expanded.items()
                }
            )
        return both[0], both[1]

    @torch.no_grad()
    @replace_example_docstring(TEXT_EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: Number | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = TOKEN_NAMES,
        guidance_schedule: str | dict | None = None,
        refine: str | None = None,
        *,
        init_image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
        ids: Tensor | None = None,
        clusters: Tensor | None = None,
        refiner_settings: dict[str, Any] | None = None,
        latents: Tensor | None = None,
        parallel: int | None = None,
        max_memory: int | str | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of captions, or change given ones.

        Args:
            prompt: captions, one or many; or `prompt_embeds`.
            negative_prompt: what guidance leads away from, one for all or one a prompt; none: the
                learned empty caption.
            guidance_scale: classifier-free guidance, active above 1. None: the repo's default, as
                for the next three.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among the k most likely tokens; 0 means all.
            top_p: sample among the fewest tokens that hold this share of the probability.
            num_images_per_prompt: images a caption.
            generator: one torch generator, or one for every image; same seed, same image, alone or
                in a batch.
            prompt_embeds: (B, up to P, C) features of a text encoder, padded on either side.
            prompt_attention_mask: (B, up to P) 1 where a feature is valid; none: all are.
            negative_prompt_embeds, negative_prompt_attention_mask: the same of the negative prompt.
            output_type: as for `CodecladePipeline`.
            return_dict: False returns a plain tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs, guidance_schedule, refine: as
                for `CodecladePipeline`.
            init_image, mask_image, strength, ids, clusters, refiner_settings, latents, parallel,
                max_memory: as for `CodecladePipeline`.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of it.

        Raises:
            ValueError: an argument with a value it cannot have; the message names both.

        Examples:
        """
        # 1. Check settings before any network runs; shapes follow with the steps they belong to.
        callback, tensors = callback_on_step_end, callback_on_step_end_tensor_inputs
        sampling = guidance_scale, temperature, top_k, top_p, num_images_per_prompt, output_type
        rest = guidance_schedule, refine, tensors, refiner_settings, parallel, callback
        settings = self.check_inputs(*sampling, *rest)
        ids = truthful("ids", ids, "latents", latents)
        edited = init_image, mask_image, strength, ids, clusters
        check_edit(*edited)
        last = refiner_settings, memory_limit(max_memory)

        # 2. Encode the condition, and what guidance leads away from.
        condition, null_condition = self.encode_condition(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )

        # 3. Sample tokens around what is kept, and decode them.
        given = generator, edited, output_type, refine, callback, tensors
        images = self.generate(condition, null_condition, settings, *given, *last)
        return self.finish(images, return_dict)

    @torch.no_grad()
    def redraw(
        self,
        *tensors,
        clusters: Tensor | None = None,
        ids: Tensor | None = None,
        prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        refine: str = "member",
        refiner_settings: dict[str, Any] | None = None,
        latents: Tensor | None = None,
        **settings,
    ) -> ImagePipelineOutput | tuple:
        """Same clusters, new details: draw new ids of given clusters.

        As `CodecladePipeline.redraw`, with captions (one, or one an image) in place of labels;
        refiners that read the generator's states and two-stage models need them.

        Args:
            clusters: (B, G, G) clusters or semantic codes, as `output_type="clusters"` gives them.
            ids: or ids (B, G, G), (B, G, G, 2), whose clusters are kept.
            prompt, prompt_embeds, prompt_attention_mask: as for `__call__`.
            refine: "member", or "refiner" for a one-stage pipeline that has one.
            refiner_settings: as for `__call__`.
            latents: another name of `ids`, after diffusers.
            settings: what else `__call__` takes, for two-stage models (guidance_scale, top_k, ...).

        Raises:
            TypeError: a tensor given by position, which could be either.
            ValueError: an argument with a value it cannot have; the message names both.
        """
        refuse_positional(tensors)
        clusters = self.clusters_to_keep(truthful("ids", ids, "latents", latents), clusters)
        condition, asked = {}, {}
        if prompt is not None or prompt_embeds is not None:
            text = self.encode_text("prompt", prompt, prompt_embeds, prompt_attention_mask)
            condition = {
                name: spread(rows, len(clusters), "prompts") for name, rows in text.items()
            }
            # A call takes features, and a mask without the image's positions that stand behind it.
            length = self.transformer.config.prefix_length
            asked["prompt_embeds"] = condition["text_embeds"]
            asked["prompt_attention_mask"] = condition["attention_mask"][:, :length]
        given = num_images_per_prompt, generator, output_type, return_dict
        how = refine, refiner_settings, settings
        return self.redraw_clusters(clusters, condition, asked, "a prompt", *given, *how)


def check_text_parts(
    transformer: CodecladeTransformer | None,
    tokenizer: PreTrainedTokenizerBase | None,
    text_encoder: T5EncoderModel | None,
) -> None:
    """Raise a ValueError unless the transformer takes the features of this text encoder."""
    if (tokenizer is None) != (text_encoder is None):
        raise ValueError("tokenizer and text_encoder go together; give both or neither.")
    if transformer is None:
        return
    # What the transformer is conditioned on, and how wide the features are that it takes.
    config = transformer.config
    if not config.text_dim:
        raise ValueError(
            f"this transformer is conditioned on {config.num_classes} classes, not on text; "
            "use CodecladePipeline."
        )
    if text_encoder is not None and text_encoder.config.d_model != config.text_dim:
        raise ValueError(
            f"text_encoder has width {text_encoder.config.d_model}, but transformer takes text "
            f"features of width {config.text_dim}."
        )
