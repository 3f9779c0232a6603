"""CodecladeTextPipeline: captions to images with a T5 encoder, VQ tokenizer and generator.

LlamaGen's text-conditional models (arXiv 2406.06525): 120 FLAN-T5-XL features of the caption are
the generator's prefix, padded on the left and masked. Sampling is CodecladePipeline's.
Must stay numerically equal to the published t2i_*.pt (see hub/convert.py).

Shapes: B images, P prefix positions, T = G * G tokens, C width of the text features.
"""

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from .cluster_map import ClusterMap
from .guidance import Number, Schedule
from .pipeline import CodecladePipeline
from .refiner import Refiner
from .sampling import image_uniforms
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


def pad_left(embeds: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Features (B, length, C) and mask (B, length) with the valid positions at the right end.

    Args:
        embeds: (B, n, C) features, n up to `length`, padded on either side.
        mask: (B, n) 1 where a feature is valid.

    The valid features keep their order; all others become zero.
    """
    order = mask.long().argsort(dim=1, stable=True)
    mask = mask.gather(1, order)
    embeds = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds)) * mask.unsqueeze(-1)
    missing = length - mask.shape[1]
    embeds = torch.nn.functional.pad(embeds, (0, 0, missing, 0))
    return embeds, torch.nn.functional.pad(mask, (missing, 0))


class CodecladeTextPipeline(CodecladePipeline):
    """Text-conditional image generation over codes.

    Args:
        vq_model: the image tokenizer.
        transformer: a generator whose config has a `text_dim`.
        tokenizer, text_encoder: T5's; without them the pipeline takes `prompt_embeds` only.
        cluster_map: needed by the "cluster" scheme.
        refiner: turns clusters into ids; none: uniform random members.
        guidance_scale, temperature, top_k, top_p, guidance_schedule: what `__call__` uses where
            nothing is given.

    Raises:
        ValueError: components that do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->cluster_map->refiner->vq_model"
    _optional_components = ["tokenizer", "text_encoder", "cluster_map", "refiner"]  # noqa: RUF012

    def __init__(
        self,
        vq_model: VQModel,
        transformer: CodecladeTransformer,
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
        DiffusionPipeline.__init__(self)  # the parent's registers class names
        self.register_modules(
            vq_model=vq_model,
            transformer=transformer,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            cluster_map=cluster_map,
            refiner=refiner,
        )
        self.register_to_config(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_schedule=guidance_schedule,
        )
        self._check_components()
        Schedule(guidance_schedule)
        self.image_processor = VaeImageProcessor(vae_scale_factor=vq_model.downsample)
        self._guidance_scale = guidance_scale
        self._interrupt = False

    def _check_components(self) -> None:
        """Raise a ValueError unless all parts fit together."""
        super()._check_components()
        config, text_encoder = self.transformer.config, self.text_encoder
        if not config.text_dim:
            raise ValueError(
                f"this transformer is conditioned on {config.num_classes} classes, not on text; "
                "use CodecladePipeline."
            )
        if (self.tokenizer is None) != (text_encoder is None):
            raise ValueError("tokenizer and text_encoder go together; give both or neither.")
        if text_encoder is not None and text_encoder.config.d_model != config.text_dim:
            raise ValueError(
                f"text_encoder has width {text_encoder.config.d_model}, but transformer takes text "
                f"features of width {config.text_dim}."
            )

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor, Tensor]:
        """T5 features (B, P, C) of captions and their mask (B, P), padded on the right.

        Captions of more than P tokens are cut.

        Raises:
            ValueError: a pipeline without text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds, or load it.")
        tokens = self.tokenizer(
            prompt,
            max_length=self.transformer.config.prefix_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        features = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        return features.last_hidden_state, tokens.attention_mask

    def _features(
        self, name: str, text: list[str] | None, embeds: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Left-padded features (B, P, C) and mask (B, P) of a text or of embeddings."""
        config = self.transformer.config
        if (text is None) == (embeds is None):
            raise ValueError(f"give either {name} or {name}_embeds.")
        if text is not None:
            embeds, mask = self.encode_prompt(text)
        elif embeds.ndim != 3 or embeds.shape[1] > config.prefix_length:
            raise ValueError(
                f"{name}_embeds must have shape (B, up to {config.prefix_length}, "
                f"{config.text_dim}), got {tuple(embeds.shape)}."
            )
        if embeds.shape[2] != config.text_dim:
            raise ValueError(
                f"{name}_embeds must have width {config.text_dim}, got {embeds.shape[2]}."
            )
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        if mask.shape != embeds.shape[:2] or not mask.any(1).all():
            raise ValueError(
                f"{name}_attention_mask must have shape {tuple(embeds.shape[:2])} and a 1 in every "
                f"row, got shape {tuple(mask.shape)}."
            )
        device = self._execution_device
        return pad_left(embeds.to(device), mask.to(device, torch.int64), config.prefix_length)

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
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
        guidance_schedule: str | dict | None = None,
        refine: str | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of captions.

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

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of it.

        Raises:
            ValueError: an argument with a value it cannot have; the message names both.

        Examples:
        """
        scale, *filters, schedule = self._filled(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_schedule=guidance_schedule,
        )
        self.check_inputs(scale, *filters, num_images_per_prompt, output_type)
        self._guidance_scale, self._interrupt = scale, False
        prompt = [prompt] if isinstance(prompt, str) else prompt
        condition = self._condition("prompt", prompt, prompt_embeds, prompt_attention_mask)
        rows = len(condition["text_embeds"])
        negative = [negative_prompt] * rows if isinstance(negative_prompt, str) else negative_prompt
        if negative is None and negative_prompt_embeds is None:
            null = self.transformer.prefix.null.expand(rows, -1, -1)
            against = condition | {"text_embeds": null.to(condition["text_embeds"])}
        else:
            against = self._condition(
                "negative_prompt", negative, negative_prompt_embeds, negative_prompt_attention_mask
            )
        if len(against["text_embeds"]) not in (1, rows):
            raise ValueError(f"{len(against['text_embeds'])} negative prompts for {rows} prompts.")
        condition, against = (
            {
                key: value.expand(rows, *value.shape[1:]).repeat_interleave(
                    num_images_per_prompt, dim=0
                )
                for key, value in part.items()
            }
            for part in (condition, against)
        )
        count = rows * num_images_per_prompt
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"{len(generator)} generators were given for {count} images.")
        stages = self.transformer.config.num_stages
        uniforms = image_uniforms(count, (stages + 1, self.num_timesteps), generator)
        tokens = self._sample_tokens(
            condition,
            against,
            uniforms[:, :stages].to(self._execution_device),
            dict(zip(("temperature", "top_k", "top_p"), filters, strict=True)),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            Schedule(schedule),
        )
        images = self._to_output(tokens, uniforms[:, stages], output_type, None, refine, condition)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _condition(
        self, name: str, text: list[str] | None, embeds: Tensor | None, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Arguments of the generator's first call: text_embeds and attention_mask (B, P+T)."""
        if text is not None and len(text) == 0:
            raise ValueError(f"{name} is empty; give at least one caption.")
        embeds, mask = self._features(name, text, embeds, mask)
        image = mask.new_ones(len(mask), self.num_timesteps)
        return {"text_embeds": embeds, "attention_mask": torch.cat([mask, image], dim=1)}
