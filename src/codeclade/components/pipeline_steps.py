"""The steps of a call that are the same for classes and for captions; a mixin of both pipelines.

A call is check_inputs -> encode_condition -> prepare_edit -> sample_tokens -> decode. Only the
condition differs, so `encode_condition` and the calls themselves are in pipeline.py and
text_pipeline.py. The work is done by the functions of generation.py and editing.py.

Shapes: B images, T = G * G tokens, S stages.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from .batch_memory import check_batches, images_at_once, in_batches
from .call_checks import OUTPUT_ALIASES, PICTURES, TOKEN_NAMES, check_call
from .cluster_map import ClusterMap
from .compatibility import check_components
from .editing import Edit, clusters_to_keep, prepare_edit
from .fields import check_settings
from .generation import (
    Draws,
    SamplingSettings,
    draw_uniforms,
    ids_to_images,
    largest,
    sample_tokens,
    tokens_to_ids,
)
from .guidance import Number, Schedule
from .optimization import optimize, optimize_decoder
from .parallel import check_parallel, choose_window, sample_in_parallel
from .pipeline_files import PipelineFiles
from .refiner import (
    Refiner,
    Refining,
    check_refiner_settings,
    check_way,
    clusters_to_ids,
)
from .sampling import image_uniforms
from .transformer import CodecladeTransformer
from .vq_model import VQModel


class PipelineSteps(PipelineFiles):
    """Settings and the shared steps; comes before `DiffusionPipeline`."""

    _callback_tensor_inputs = list(TOKEN_NAMES)  # noqa: RUF012 (diffusers reads a list)

    _exclude_from_cpu_offload = ["cluster_map"]  # noqa: RUF012 (small, and without parameters)

    # What `_set_up` registers, and what the steps use of DiffusionPipeline.
    vq_model: VQModel
    transformer: CodecladeTransformer
    cluster_map: ClusterMap | None
    refiner: Refiner | None
    config: Mapping[str, Any]
    register_modules: Callable[..., None]
    progress_bar: Callable[..., Any]
    maybe_free_model_hooks: Callable[[], None]
    _execution_device: torch.device

    def _set_up(self, parts: dict[str, Any], settings: dict[str, Any]) -> None:
        """Register parts and settings, once they are known to go together."""
        self.register_modules(**parts)
        cast(Any, self).register_to_config(**settings)
        if isinstance(settings["guidance_scale"], (tuple, list)):  # an index reads pairs as parts
            raise ValueError("the default guidance_scale is one number; give pairs to the call.")
        shared = ("vq_model", "transformer", "cluster_map", "refiner")
        # Without one of these a pipeline serves for a part of its work, such as encoding captions.
        if parts["vq_model"] is not None and parts["transformer"] is not None:
            check_components(*(parts[name] for name in shared))
        # Defaults are checked now, not at the first call that falls back on them.
        check_settings(settings, "defaults of the pipeline")
        Schedule(settings["guidance_schedule"])
        if parts["transformer"] is not None:
            count = parts["transformer"].config.num_classes
            for number in settings.get("id2label", {}):
                if int(number) >= count:
                    raise ValueError(
                        f"id2label names class {number}, but classes are 0..{count - 1}."
                    )
        # What diffusers' own parts of a pipeline expect to find.
        factor = 1 if parts["vq_model"] is None else parts["vq_model"].downsample
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)
        self._num_timesteps: int | None = None
        self._guidance_scale = settings["guidance_scale"]
        self._interrupt = False

    @property
    def guidance_scale(self) -> Number:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return largest(self._guidance_scale) > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call, which an edit has fewer of; before any, tokens of an image."""
        if self._num_timesteps is None:
            return self.transformer.config.num_tokens
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def optimize(self, weights: str = "packed"):
        """Bring weights into a form that a CPU computes with faster; returns self.

        The tokenizer's convolutions get their channels last, and the start of its decoder computes
        in float32. For inference alone: an optimized pipeline cannot be saved or moved.

        Args:
            weights: "packed", the same numbers in oneDNN's layout (float32 or bfloat16), for
                batches; "single", the numbers as they are, whose steps of few images are one
                compiled call, for one image at a time; of bfloat16 pipelines also "int8", rounded
                to 8 bits with a scale for every output, or "int4", to 4 bits with a scale for
                every 32 inputs; see optimization.py.

        Raises:
            ValueError: an unknown form, or one that this generator cannot have where it is.
        """
        self.check_parts_for("transformer", "be optimized")
        optimize(cast(torch.nn.Module, self.transformer), weights)
        if self.vq_model is not None:
            optimize_decoder(self.vq_model)
        return self

    def check_inputs(
        self,
        guidance_scale: Number | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        guidance_schedule: str | dict | None = None,
        refine: str | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = (),
        refiner_settings: dict[str, Any] | None = None,
        parallel: int | None = None,
        callback_on_step_end: Callable | None = None,
    ) -> SamplingSettings:
        """How tokens are sampled, once all arguments have values they can have.

        None stands for the repository's default of the first four and of the schedule.

        Raises:
            ValueError: naming the first argument with a value it cannot have.
        """
        kind = OUTPUT_ALIASES.get(output_type, output_type)
        self.check_parts_for("transformer", "sample tokens")
        if kind in PICTURES:
            self.check_parts_for("vq_model", "decode images; ask for ids or clusters")
        # None means the repository's default: published models differ in what suits them.
        given: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "guidance_schedule": guidance_schedule,
        }
        given |= {name: self.config[name] for name, value in given.items() if value is None}
        asked_schedule = given.pop("guidance_schedule")
        settings = SamplingSettings(**given)
        # Every argument alone.
        scheme = self.transformer.scheme
        names, several = callback_on_step_end_tensor_inputs, num_images_per_prompt
        check_call(settings, several, output_type, names, scheme.two_stages)
        # And with the parts that are loaded.
        if kind == "clusters" and scheme.num_clusters(self.cluster_map) is None:
            raise ValueError(
                f"output_type={output_type!r} needs a cluster_map, which this pipeline lacks."
            )
        check_way(refine, self.refiner)
        check_refiner_settings(refiner_settings, refine, self.refiner)
        if refine == "refiner" and not scheme.predicts_clusters:
            raise ValueError(
                f"refine='refiner' is for transformers that predict clusters, not for scheme "
                f"{scheme.name!r}."
            )
        settings = replace(settings, schedule=Schedule(asked_schedule))
        possible = check_parallel(parallel, self.transformer, settings, callback_on_step_end)
        return replace(settings, parallel=possible)

    def check_parts_for(self, name: str, purpose: str) -> None:
        """Raise a ValueError unless a part is loaded that is needed for a purpose."""
        if getattr(self, name) is None:
            raise ValueError(f"this pipeline was loaded without {name}, so it cannot {purpose}.")

    @torch.no_grad()
    def prepare_edit(
        self,
        draws: Draws,
        init_image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
        ids: Tensor | None = None,
        clusters: Tensor | None = None,
    ) -> Edit | None:
        """What the call keeps of images, ids or clusters; None: nothing, all is sampled."""
        if init_image is not None or ids is not None:
            self.check_parts_for("vq_model", "edit images or ids")
        # The function does not know pipelines, so that it can be used and tested without one.
        parts = self.vq_model, self.transformer, self.cluster_map, self.image_processor
        return prepare_edit(
            len(draws.members),
            *parts,
            self._execution_device,
            init_image=init_image,
            mask_image=mask_image,
            ids=ids,
            clusters=clusters,
            strength=strength,
            uniforms=draws.strength,
        )

    def sample_tokens(
        self,
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor],
        draws: Draws,
        settings: SamplingSettings,
        edit: Edit | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = TOKEN_NAMES,
    ) -> Tensor:
        """Tokens (B, T, ...) of the transformer, with a progress bar and the user's callback.

        Args:
            condition: keyword arguments of the transformer's first call, each with B rows.
            null_condition: the same for the unconditional half of the guidance batch.
        """
        # State of one call, which a callback may change through the pipeline as in diffusers.
        self._guidance_scale, self._interrupt = settings.guidance_scale, False
        # An edit samples only from its first change to its last, and the bar counts those.
        steps = self.transformer.config.num_tokens if edit is None else edit.stop - edit.start
        self._num_timesteps = steps
        with self.progress_bar(total=steps) as bar:

            def after_token(step: int, tokens: Tensor) -> tuple[Tensor, Number, bool]:
                if callback_on_step_end is not None:
                    given = dict.fromkeys(callback_on_step_end_tensor_inputs, tokens)
                    changed = callback_on_step_end(self, step, step, given) or {}
                    # Either name may come back changed; the one that did not is no news.
                    values = [changed.get(name) for name in TOKEN_NAMES]
                    news = [one for one in values if one is not None and one is not tokens]
                    tokens = news[0] if news else tokens
                bar.update()
                return tokens, self._guidance_scale, self._interrupt

            def after_pass(count: int) -> bool:
                bar.update(count)
                return self._interrupt

            device = self._execution_device
            seeds = draws.tokens.to(device)  # (B, S, T)
            given = self.transformer, condition, null_condition, seeds, settings
            # Several tokens a pass where one image leaves the machine waiting; ids are the same.
            window = choose_window(settings.parallel, len(seeds), device, self.transformer)
            if window > 1:
                return sample_in_parallel(*given, window, edit, after_pass)
            return sample_tokens(*given, edit, after_token)

    def generate(
        self,
        condition: dict[str, Tensor],
        null_condition: dict[str, Tensor],
        settings: SamplingSettings,
        generator: torch.Generator | list[torch.Generator] | None,
        edited: tuple[Any, Any, float, Tensor | None, Tensor | None],
        output_type: str,
        refine: str | None,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str],
        refiner_settings: dict[str, Any] | None = None,
        limit: int | None = None,
    ):
        """The steps after `encode_condition`, in order: prepare_edit, sample_tokens, decode.

        Args:
            condition, null_condition: as `encode_condition` gives them, B rows each.
            edited: init_image, mask_image, strength, ids and clusters of the call.
            limit: bytes of memory, see batch_memory.py.

        Returns:
            As `decode`.
        """
        # All numbers are drawn before sampling, so an edit or a callback cannot shift the stream.
        init_image, mask_image, strength, ids, clusters = edited
        count = len(next(iter(condition.values())))
        draws = draw_uniforms(count, self.transformer, generator, strength)
        edit = self.prepare_edit(draws, init_image, mask_image, strength, ids, clusters)
        callback = callback_on_step_end, callback_on_step_end_tensor_inputs
        size = count
        if limit is not None:
            decodes = OUTPUT_ALIASES.get(output_type, output_type) in PICTURES
            parts = self.vq_model if decodes else None, self.refiner if refine != "member" else None
            guided = settings.guided, (refiner_settings or {}).get("guidance_scale", 1) > 1
            size, _ = images_at_once(limit, count, self.transformer, guided[0], *parts, guided[1])
            check_batches(size, count, callback_on_step_end)

        def images_of(part: slice) -> Any:
            rows, null = ({name: of[part] for name, of in given.items()} for given in conditions)
            known = None if edit is None else edit.of(part)
            tokens = self.sample_tokens(rows, null, draws.of(part), settings, known, *callback)
            # The condition goes to the decoder too: refiners read the class, or states.
            refining = refine, rows, refiner_settings
            return self.decode(tokens, draws.members[part], output_type, known, *refining)

        conditions = condition, null_condition
        return in_batches(images_of, count, size)

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        members: Tensor,
        output_type: str = "pil",
        edit: Edit | None = None,
        refine: str | None = None,
        condition: dict[str, Tensor] | None = None,
        refiner_settings: dict[str, Any] | None = None,
    ):
        """Tokens (B, T, ...) as images, fine ids (B, G, G, ...) or clusters (B, G, G).

        Args:
            members: (B, T), `Draws.members`.
            refine: "refiner" or "member" for tokens that are clusters; None: the refiner, if any.
            condition: what the tokens were sampled with, for a refiner.
            refiner_settings: temperature, top_k and guidance_scale of the refiner.
        """
        # Clusters need neither a draw nor the tokenizer.
        kind, scheme = OUTPUT_ALIASES.get(output_type, output_type), self.transformer.scheme
        grid = (self.transformer.config.grid_size,) * 2
        if kind == "clusters":
            mapping = scheme.mapping(self.transformer, self.cluster_map)
            return scheme.tokens_to_clusters(tokens, mapping).unflatten(1, grid)
        # From here on clusters must become ids, by the member draw or by the refiner.
        parts = self.transformer, self.cluster_map, self.refiner
        refining = Refining(refine, condition, refiner_settings)
        ids = tokens_to_ids(tokens, members, *parts, refining, edit).unflatten(1, grid)
        if kind == "ids":
            return ids
        return ids_to_images(ids, self.vq_model, self.image_processor, output_type)

    def finish(self, images: Any, return_dict: bool) -> ImagePipelineOutput | tuple:
        """The output of a call, models put back where they wait."""
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def clusters_to_keep(self, ids: Tensor | None, clusters: Tensor | None) -> Tensor:
        """Clusters (B, T) that `redraw` keeps; of ids the details are dropped."""
        self.check_parts_for("transformer", "redraw")
        if ids is not None:
            self.check_parts_for("vq_model", "redraw ids; give clusters")
        parts = self.vq_model, self.transformer, self.cluster_map
        return clusters_to_keep(ids, clusters, *parts, self._execution_device)

    def redraw_clusters(
        self,
        clusters: Tensor,
        condition: dict[str, Tensor],
        asked: dict[str, Any],
        wanted: str,
        num_images_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        return_dict: bool,
        refine: str,
        refiner_settings: dict[str, Any] | None,
        settings: dict[str, Any],
    ) -> ImagePipelineOutput | tuple:
        """`redraw` of clusters (B, T), once the condition is encoded.

        Args:
            condition: rows of labels or text features, one a row of clusters; empty: not given.
            asked: the same as arguments of a call.
            wanted: what to ask for where a condition is needed and not given.
            settings: what else `redraw` was given.

        Raises:
            ValueError: no condition for a second stage, or what `redraw_members` refuses.
        """
        # One stage: nothing is sampled by the generator, the details lie outside of it.
        scheme, grid = self.transformer.scheme, self.transformer.config.grid_size
        if not scheme.two_stages:
            given = num_images_per_prompt, generator, output_type, refine, settings
            images = self.redraw_members(clusters, condition, *given, refiner_settings)
            return self.finish(images, return_dict)
        if not asked:
            raise ValueError(f"redraw of scheme {scheme.name!r} needs {wanted}.")
        # Two stages: a call that holds the first; "member" is the draw that its second one makes.
        return cast(Any, self)(
            **asked,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            clusters=clusters.unflatten(1, (grid, grid)),
            refine=None if refine == "member" else refine,
            refiner_settings=refiner_settings,
            **settings,
        )

    def redraw_members(
        self,
        clusters: Tensor,
        condition: dict[str, Tensor],
        num_images_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        refine: str,
        settings: dict[str, Any],
        refiner_settings: dict[str, Any] | None = None,
    ):
        """New ids, or images of them, of clusters (B, T): `redraw` without a second stage.

        Args:
            condition: rows of labels or text features, one a row of clusters, for a refiner.
            settings: what else `redraw` was given, which only a second stage could use.
            refiner_settings: temperature, top_k and guidance_scale of the refiner.

        Raises:
            ValueError: any settings, or an argument with a value it cannot have.
        """
        if settings:
            name = self.transformer.scheme.name
            raise ValueError(f"redraw of scheme {name!r} takes no {', '.join(settings)}.")
        # Sampling settings play no part; neutral ones let the other arguments be checked.
        self.check_inputs(1.0, 1.0, 0, 1.0, num_images_per_prompt, output_type)
        check_way(refine, self.refiner)
        check_refiner_settings(refiner_settings, refine, self.refiner)
        # Copies of a grid differ by their own numbers, as images of one label do in a call.
        clusters = clusters.repeat_interleave(num_images_per_prompt, dim=0)
        condition = {
            name: rows.repeat_interleave(num_images_per_prompt, dim=0)
            for name, rows in condition.items()
        }
        # Asked for clusters, they are what was given: no number is drawn.
        grid = (self.transformer.config.grid_size,) * 2
        kind = OUTPUT_ALIASES.get(output_type, output_type)
        if kind == "clusters":
            return clusters.unflatten(1, grid)
        uniforms = image_uniforms(len(clusters), (clusters.shape[1],), generator)  # (B, T)
        # One-stage pipelines that have clusters have them from a map.
        parts = self.transformer, cast(ClusterMap, self.cluster_map), self.refiner
        refining = Refining(refine, condition, refiner_settings)
        ids = clusters_to_ids(clusters, uniforms, *parts, refining).unflatten(1, grid)
        if kind == "ids":
            return ids
        return ids_to_images(ids, self.vq_model, self.image_processor, output_type)

    @torch.no_grad()
    def preview(
        self,
        tokens: Tensor,
        known: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> list:
        """PIL images of a call's first `known` tokens, gray where none are yet.

        For `callback_on_step_end`. Members are drawn as the call will draw them where it has no
        refiner and `generator` has the seed that the call's had.

        Args:
            tokens: (B, T) or (B, T, 2), as the callback is given them.
            known: 1 to T; what comes after is not looked at.
        """
        config, cell = self.transformer.config, self.vq_model.downsample
        # The decoder sees the whole image: rows that look like the last one disturb it least.
        source = torch.arange(config.num_tokens)
        first = max(known - config.grid_size, 0)
        source[known:] = first + (source[known:] - known) % (known - first)
        draws = draw_uniforms(len(tokens), self.transformer, generator)
        decoded = self.decode(tokens[:, source], draws.members, "pt", refine="member")
        pixels = cast(Tensor, decoded)  # (B, 3, H, W), as "pt" says
        # Gray over the cells that are only guessed.
        there = (torch.arange(config.num_tokens) < known).view(1, 1, config.grid_size, -1)
        there = there.repeat_interleave(cell, 2).repeat_interleave(cell, 3).to(pixels.device)
        images = self.image_processor.pt_to_numpy(torch.where(there, pixels, 0.5))
        return self.image_processor.numpy_to_pil(images)
