"""CodecladePipeline: class names to images with VQ tokenizer, cluster map and generator.

The generator samples clusters (MASC arXiv 2510.04220, DCPE arXiv 2508.10719), ids (LlamaGen arXiv
2406.06525), or in two stages a cluster and an id, or a semantic and a detail code (IAR2), in raster
order; clusters become ids by a uniform member draw or a refiner; the tokenizer decodes the ids.
Filters are LlamaGen's; guidance follows a schedule; known tokens may be kept.

Shapes: B images, P prefix positions, T = G * G tokens, S stages, V vocabulary, D width.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import DynamicCache, StaticCache

from .cluster_map import ClusterMap
from .compatibility import check_components
from .editing import Edit, EditingMixin, check_edit
from .guidance import Number, Schedule
from .labels import ids_by_name, label_id
from .loading import check_weight_files, installed_index
from .refiner import Refiner, clusters_to_ids
from .sampling import guide, image_uniforms, sample
from .transformer import CodecladeOutput, CodecladeTransformer
from .vq_model import VQModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "cluster")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch, codeclade
        >>> from codeclade import CodecladePipeline

        >>> pipe = CodecladePipeline.from_pretrained(codeclade.bundled())
        >>> generator = torch.Generator().manual_seed(7)
        >>> image = pipe("golden retriever", guidance_scale=2.0, generator=generator).images[0]
        ```
"""


class CodecladePipeline(EditingMixin, DiffusionPipeline):
    """Class-conditional image generation over clustered codes.

    Args:
        vq_model: the image tokenizer.
        transformer: the generator; its `config.scheme` says what it predicts.
        cluster_map: needed by the "cluster" scheme.
        refiner: turns clusters into ids; none: uniform random members.
        id2label: class names by class id (ids as strings, as JSON keeps them); several names of one
            class are separated by commas.
        guidance_scale, temperature, top_k, top_p, guidance_schedule: what `__call__` uses where
            nothing is given.

    Raises:
        ValueError: components that do not belong together.
    """

    model_cpu_offload_seq = "transformer->cluster_map->refiner->vq_model"
    _optional_components = ["cluster_map", "refiner"]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        vq_model: VQModel,
        transformer: CodecladeTransformer,
        cluster_map: ClusterMap | None = None,
        id2label: dict[str, str] | None = None,
        guidance_scale: float = 2.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance_schedule: str | dict | None = None,
        refiner: Refiner | None = None,
    ):
        super().__init__()
        if transformer.config.text_dim:
            raise ValueError("this transformer takes captions; use CodecladeTextPipeline.")
        parts = {"vq_model": vq_model, "transformer": transformer, "cluster_map": cluster_map}
        self.register_modules(**parts, refiner=refiner)
        self.register_to_config(
            id2label={str(key): name for key, name in (id2label or {}).items()},
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As in diffusers; weights of a local folder are checked first, for short errors."""
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            check_weight_files(folder, tuple(kwargs))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """diffusers reads model_index.json here; code in the repository gives way to this package.

        Not where this file itself came with a repository: then the package may not be there.
        """
        index = super()._dict_from_json_file(json_file)
        return installed_index(index) if __name__.startswith("codeclade.") else index

    def _check_components(self) -> None:
        """Raise a ValueError unless all parts fit together."""
        if isinstance(self.config.guidance_scale, (tuple, list)):  # an index reads pairs as parts
            raise ValueError("the default guidance_scale is one number; give pairs to the call.")
        check_components(self.vq_model, self.transformer, self.cluster_map, self.refiner)

    @property
    def guidance_scale(self) -> Number:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        scale = self._guidance_scale
        return (max(scale) if isinstance(scale, (tuple, list)) else scale) > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of one call: the tokens of one image."""
        return self.transformer.config.num_tokens

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def labels(self) -> dict[str, list[int]]:
        """Class ids by lower-case name, synonyms included; a few names mean several classes."""
        return ids_by_name(self.config.id2label)

    def get_label_ids(self, labels: int | str | list[int | str]) -> list[int]:
        """Class ids of class names or ids.

        Raises:
            ValueError: no label at all, an id out of range, or a name that is unknown (the nearest
                ones are given) or means several classes.
        """
        asked = labels if isinstance(labels, (list, tuple)) else [labels]
        if isinstance(labels, Tensor):
            asked = labels.flatten().tolist()
        if not asked:
            raise ValueError("class_labels is empty; give at least one class name or id.")
        count, names = self.transformer.config.num_classes, self.labels
        return [label_id(label, count, names) for label in asked]

    def check_inputs(
        self,
        guidance_scale: Number,
        temperature: float,
        top_k: int,
        top_p: float,
        num_images_per_prompt: int,
        output_type: str,
    ) -> None:
        """Raise a ValueError that names the first argument with a value it cannot have."""
        stages = self.transformer.config.num_stages
        scales = guidance_scale if isinstance(guidance_scale, (tuple, list)) else (guidance_scale,)
        fits = len(scales) in (1, stages) and min(scales) >= 0
        allowed = "0 or more" + (", or a pair of such numbers" if stages == 2 else "")
        checks = (
            ("guidance_scale", guidance_scale, fits, allowed),
            ("temperature", temperature, temperature >= 0, "0 (arg-max) or more"),
            ("top_k", top_k, top_k >= 0, "0 (all) or more"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0, up to 1"),
            (
                "num_images_per_prompt",
                num_images_per_prompt,
                num_images_per_prompt >= 1,
                "1 or more",
            ),
            ("output_type", output_type, output_type in OUTPUT_TYPES, f"one of {OUTPUT_TYPES}"),
        )
        for name, value, good, allowed in checks:
            if not good:
                raise ValueError(f"{name}={value!r} must be {allowed}.")
        known = self.transformer.scheme.num_clusters(self.cluster_map)
        if output_type == "cluster" and known is None:
            raise ValueError(
                "output_type='cluster' needs a cluster_map, which this pipeline lacks."
            )

    def _filled(self, **given) -> list:
        """The values given, the repo's defaults in place of None."""
        return [self.config[name] if value is None else value for name, value in given.items()]

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | list[int | str],
        guidance_scale: Number | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
        guidance_schedule: str | dict | None = None,
        init_image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
        latents: Tensor | None = None,
        clusters: Tensor | None = None,
        refine: str | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of classes, or change given ones.

        Args:
            class_labels: class names or ids, one or many.
            guidance_scale: classifier-free guidance, active above 1; two-stage schemes also take a
                pair, one number a stage. None: the repo's default, as for the next three.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among the k most likely tokens; 0 means all.
            top_p: sample among the fewest tokens that hold this share of the probability.
            num_images_per_prompt: images a label.
            generator: one torch generator, or one for every image; same seed, same image, alone or
                in a batch.
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], "latent"
                (fine ids, (B, G, G)) or "cluster" (cluster ids, (B, G, G)). With a detail codebook
                fine ids are pairs (B, G, G, 2), and clusters the semantic codes.
            return_dict: False returns a plain tuple.
            callback_on_step_end: called as `callback(pipe, step, token, kwargs)`; may return a dict
                with changed `latents` (the tokens so far, (B, T) or (B, T, 2)).
            callback_on_step_end_tensor_inputs: names the callback is given; only "latents".
            guidance_schedule: how the scale changes from token to token: a name, or a dict of
                `name` and parameters; see guidance.py. None: the repo's default.
            init_image: image or images to change, resized to the pipeline's size; tensors are in
                [0, 1].
            mask_image: where they change: white, or true (B, H, W); the rest of the tokens is kept.
                The lower half white goes on from the upper half.
            strength: share of the tokens inside the mask that change, picked at random.
            latents: ids (B, G, G) or (B, G, G, 2) to change, instead of `init_image`.
            clusters: (B, G, G) choices of the first stage to keep everywhere; see `redraw`.
            refine: how clusters become ids: "refiner" (the default where there is one) or "member".

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
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs={list(callback_on_step_end_tensor_inputs)!r} "
                f"must be among {self._callback_tensor_inputs}."
            )
        check_edit(init_image, mask_image, strength, latents, clusters)
        schedule = Schedule(schedule)
        label_ids = self.get_label_ids(class_labels)
        self._guidance_scale, self._interrupt = scale, False
        labels = torch.tensor(label_ids, device=self._execution_device)
        labels = labels.repeat_interleave(num_images_per_prompt)
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(f"{len(generator)} generators were given for {len(labels)} images.")
        stages = self.transformer.config.num_stages
        # Rows: one a stage, one for the member draw, one to pick what `strength` changes.
        shape = (stages + 1 + (strength < 1), self.num_timesteps)
        uniforms = image_uniforms(len(labels), shape, generator)
        edit = self._edit(init_image, mask_image, strength, latents, clusters, uniforms[:, -1])
        condition = {"class_labels": labels}
        tokens = self._sample_tokens(
            condition,
            {"class_labels": torch.full_like(labels, self.transformer.config.num_classes)},
            uniforms[:, :stages].to(labels.device),
            dict(zip(("temperature", "top_k", "top_p"), filters, strict=True)),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            schedule,
            edit,
        )
        images = self._to_output(tokens, uniforms[:, stages], output_type, edit, refine, condition)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample_tokens(
        self,
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor],
        uniforms: Tensor,
        knobs: dict[str, float],
        callback: Callable | None = None,
        callback_inputs: tuple[str, ...] | list[str] = ("latents",),
        schedule: Schedule | None = None,
        edit: Edit | None = None,
    ) -> Tensor:
        """Tokens (B, T), or pairs (B, T, 2), of `transformer`, one position a step.

        Args:
            condition: keyword arguments of the first forward call, each with B rows.
            null_condition: the same for the unconditional half of the guidance batch.
            uniforms: (B, S, T) numbers in [0, 1), one a choice; (B, T) for one stage.
            knobs: temperature, top_k, top_p.
            schedule: of guidance; None is constant.
            edit: what is known; steps before the first and after the last change are left out.
        """
        config = self.transformer.config
        uniforms = uniforms.unsqueeze(1) if uniforms.ndim == 2 else uniforms
        batch, _, steps = uniforms.shape
        schedule, guided = schedule or Schedule(None), self.do_classifier_free_guidance
        if guided:
            condition = {
                key: torch.cat([value, null_condition[key]]) for key, value in condition.items()
            }
        scheme = self.transformer.scheme
        shape = (batch, steps, *scheme.token_shape)
        latents = torch.zeros(shape, dtype=torch.int64, device=uniforms.device)
        start, stop, inputs = 0, steps, condition
        if edit is not None:
            latents, (start, stop) = edit.tokens.clone(), edit.bounds()
            if start:
                inputs = condition | {"input_ids": _twice(latents[:, :start], guided)}
        cache = StaticCache(config, max_cache_len=config.prefix_length + steps)
        hidden = torch.zeros((), device=latents.device)
        with self.progress_bar(total=stop - start) as bar:
            for step in range(start, stop):
                if self._interrupt:
                    break
                output = self.transformer(
                    **inputs,
                    past_key_values=cache,
                    return_logits=False,
                    output_condition_attention=guided and schedule.uses_attention,
                )
                if scheme.reads_earlier_states:
                    hidden = _remember(hidden, output.hidden_states, step, steps, start)
                choices = self._choose(output, hidden, step, uniforms, knobs, schedule, edit)
                latents[:, step] = scheme.choices_to_tokens(choices)
                if callback is not None:
                    given = dict.fromkeys(callback_inputs, latents)
                    latents = (callback(self, step, step, given) or {}).get("latents", latents)
                inputs = {"input_ids": _twice(latents[:, step : step + 1], guided)}
                if "attention_mask" in condition:
                    inputs["attention_mask"] = condition["attention_mask"]
                bar.update()
        return latents

    def _choose(
        self,
        output: CodecladeOutput,
        hidden: Tensor,
        step: int,
        uniforms: Tensor,
        knobs: dict[str, float],
        schedule: Schedule,
        edit: Edit | None,
    ) -> Tensor:
        """What every stage chooses at one step, (B, S)."""
        batch, stages, steps = uniforms.shape
        attended, cache, choices = output.condition_attention, DynamicCache(), []
        guided = len(output.hidden_states) > batch
        for stage in range(stages):
            chosen = _twice(choices[-1], guided) if choices else None
            if self.transformer.scheme.reads_earlier_states:
                logits = self.transformer.stage_logits(hidden, step, chosen, cache)
            else:
                logits = self.transformer.stage_logits(output.hidden_states, -1, chosen, cache)
            if guided:
                shares = None if attended is None else attended[:batch]
                logits = self._guided(logits, schedule, step, steps, stage, shares)
            choice = sample(logits, uniforms[:, stage, step], **knobs)
            if edit is not None:
                kept = edit.choices[:, step, stage]
                choice = torch.where(edit.redo[:, step, stage], choice, kept)
            choices.append(choice)
        return torch.stack(choices, dim=-1)

    def _guided(self, logits, schedule: Schedule, step, steps, stage, attended) -> Tensor:
        """Logits (B, V) of one stage from those of both halves of the guidance batch (2B, V)."""
        conditional, unconditional = logits.chunk(2)
        # A callback may change the scale; at 1 or less the condition alone speaks.
        if not self.do_classifier_free_guidance:
            return conditional
        scale = schedule.scale_at(self._guidance_scale, step, steps, stage, attended)
        if not isinstance(scale, Tensor) and scale <= 1:
            return conditional
        return guide(conditional, unconditional, scale)

    def _to_output(
        self, tokens: Tensor, uniforms: Tensor, output_type: str, edit: Edit | None = None, *given
    ):
        """Tokens (B, T, ...) as ids, clusters or images; `given` is for `clusters_to_ids`."""
        scheme = self.transformer.scheme
        clustered = scheme.predicts_clusters
        if output_type == "cluster":
            mapping = scheme.mapping(self.transformer, self.cluster_map)
            tokens = scheme.tokens_to_clusters(tokens, mapping)
            return tokens.unflatten(1, (self.transformer.config.grid_size,) * 2)
        if clustered:
            parts = self.transformer, self.cluster_map, self.refiner
            tokens = clusters_to_ids(tokens, uniforms, *parts, *given)
            if edit is not None:
                tokens = torch.where(edit.redo[..., 0], tokens, edit.ids)
        return self._decode(tokens, output_type)

    @torch.no_grad()
    def preview(
        self,
        latents: Tensor,
        known: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> list:
        """PIL images of a class-conditional call's first `known` tokens, grey where none are yet.

        For `callback_on_step_end`. Members are drawn as the call will draw them where it has no
        refiner and `generator` has the seed that the call's had.

        Args:
            latents: (B, T) or (B, T, 2), as the callback is given them.
            known: 1 to T; what comes after is not looked at.
        """
        config, cell = self.transformer.config, self.vq_model.downsample
        # The decoder sees the whole image: rows that look like the last one disturb it least.
        source = torch.arange(config.num_tokens)
        first = max(known - config.grid_size, 0)
        source[known:] = first + (source[known:] - known) % (known - first)
        shape = (config.num_stages + 1, config.num_tokens)
        uniforms = image_uniforms(len(latents), shape, generator)[:, -1]
        pixels = self._to_output(latents[:, source], uniforms, "pt", None, "member")
        there = (torch.arange(config.num_tokens) < known).view(1, 1, config.grid_size, -1)
        there = there.repeat_interleave(cell, 2).repeat_interleave(cell, 3).to(pixels.device)
        pixels = self.image_processor.pt_to_numpy(torch.where(there, pixels, 0.5))
        return self.image_processor.numpy_to_pil(pixels)

    def _decode(self, ids: Tensor, output_type: str):
        """Fine ids (B, T, ...) as a grid ("latent") or as images."""
        grid = self.transformer.config.grid_size
        ids = ids.unflatten(1, (grid, grid))
        if output_type == "latent":
            return ids
        pixels = self.vq_model.decode(ids).float()
        return self.image_processor.postprocess(pixels, output_type=output_type)


def _twice(rows: Tensor, guided: bool) -> Tensor:
    """Rows for both halves of the guidance batch."""
    return torch.cat([rows, rows]) if guided else rows


def _remember(hidden: Tensor, new: Tensor, step: int, steps: int, start: int) -> Tensor:
    """Hidden states (B, T, D) of the tokens so far, the new ones (B, L, D) put up to `step`."""
    if step == start:  # the first call brings the prefix and all known tokens
        hidden, new = new.new_zeros(len(new), steps, new.shape[-1]), new[:, -(step + 1) :]
    hidden[:, step + 1 - new.shape[1] : step + 1] = new
    return hidden
