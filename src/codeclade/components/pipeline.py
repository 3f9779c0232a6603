"""CodecladePipeline: class names to images with VQ tokenizer, cluster map and generator.

A call checks its arguments, encodes the labels, prepares what is kept of given images, samples
tokens (MASC arXiv 2510.04220, DCPE arXiv 2508.10719, LlamaGen arXiv 2406.06525, IAR2 arXiv
2510.06928) and decodes them; its steps are public, see pipeline_steps.py.

Shapes: B images, T = G * G tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.doc_utils import replace_example_docstring
from torch import Tensor

from .batch_memory import memory_limit
from .call_checks import TOKEN_NAMES
from .cluster_map import ClusterMap
from .editing import check_edit, refuse_positional, spread, truthful
from .guidance import Number
from .labels import ids_by_name, label_id
from .pipeline_steps import PipelineSteps
from .refiner import Refiner
from .transformer import CodecladeTransformer
from .vq_model import VQModel

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


class CodecladePipeline(PipelineSteps, DiffusionPipeline):
    """Class-conditional image generation over clustered codes.

    Args:
        vq_model: the image tokenizer; None: a pipeline that gives ids and clusters only.
        transformer: the generator; its `config.scheme` says what it predicts. None: a pipeline that
            samples nothing.
        cluster_map: needed by the "cluster" scheme.
        refiner: turns clusters into ids; none: uniform random members.
        id2label: class names by class id (ids as strings, as JSON keeps them); several names of one
            class are separated by commas.
        guidance_scale, temperature, top_k, top_p, guidance_schedule: what `__call__` uses where
            nothing is given.

    Raises:
        ValueError: components that do not belong together.
    """

    model_cpu_offload_seq = "transformer->refiner->vq_model"
    _optional_components = ["cluster_map", "refiner"]  # noqa: RUF012 (diffusers reads a list)

    def __init__(
        self,
        vq_model: VQModel | None,
        transformer: CodecladeTransformer | None,
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
        # The other checks are for both kinds of pipeline; the kind of condition is ours alone.
        if transformer is not None and transformer.config.text_dim:
            raise ValueError("this transformer takes captions; use CodecladeTextPipeline.")
        self._set_up(
            {
                "vq_model": vq_model,
                "transformer": transformer,
                "cluster_map": cluster_map,
                "refiner": refiner,
            },
            {
                # As JSON keeps them, so that a saved and loaded pipeline has equal settings.
                "id2label": {str(key): name for key, name in (id2label or {}).items()},
                "guidance_scale": guidance_scale,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "guidance_schedule": guidance_schedule,
            },
        )

    @property
    def labels(self) -> dict[str, list[int]]:
        """Class ids by lower-case name, synonyms included; a few names mean several classes."""
        return ids_by_name(self.config["id2label"])

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

    def encode_condition(
        self, class_labels: int | str | list[int | str], num_images_per_prompt: int = 1
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Arguments of the transformer's first call, with and without the condition.

        Returns:
            Two dicts of `class_labels` (B,), B = labels * num_images_per_prompt.
        """
        labels = torch.tensor(self.get_label_ids(class_labels), device=self._execution_device)
        labels = labels.repeat_interleave(num_images_per_prompt)
        null = torch.full_like(labels, self.transformer.config.num_classes)
        return {"class_labels": labels}, {"class_labels": null}

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
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = TOKEN_NAMES,
        guidance_schedule: str | dict | None = None,
        *,
        init_image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
        ids: Tensor | None = None,
        clusters: Tensor | None = None,
        refine: str | None = None,
        refiner_settings: dict[str, Any] | None = None,
        latents: Tensor | None = None,
        parallel: int | None = None,
        max_memory: int | str | None = None,
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
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], "ids"
                (fine ids, (B, G, G)) or "clusters" (cluster ids, (B, G, G)). With a detail codebook
                fine ids are pairs (B, G, G, 2), and clusters the semantic codes. "latent" and
                "cluster" mean the last two as well.
            return_dict: False returns a plain tuple.
            callback_on_step_end: called as `callback(pipe, step, token, kwargs)`; may return a dict
                with changed `tokens` (those so far, (B, T) or (B, T, 2)).
            callback_on_step_end_tensor_inputs: names the callback is given; "tokens", and "latents"
                for the same tensor under diffusers' name.
            guidance_schedule: how the scale changes from token to token: a name, or a dict of
                `name` and parameters; see guidance.py. None: the repo's default.
            init_image: image or images to change, resized to the pipeline's size; tensors are in
                [0, 1].
            mask_image: where they change: white, or true (B, H, W); the rest of the tokens is kept.
                The lower half white goes on from the upper half.
            strength: share of the tokens inside the mask that change, picked at random.
            ids: ids (B, G, G) or (B, G, G, 2) to change, instead of `init_image`.
            clusters: (B, G, G) choices of the first stage to keep everywhere; see `redraw`.
            refine: how clusters become ids: "refiner" (the default where there is one) or "member".
            refiner_settings: `temperature`, `top_k` and `guidance_scale` of the refiner, as for
                `Refiner.refine`; what is not there is the refiner's default.
            parallel: tokens decoded in one pass at most, which changes the time and not the image;
                1 decodes one by one, None chooses: several for one image on a CPU. See parallel.py.
            latents: another name of `ids`, after diffusers.
            max_memory: bytes, or a size such as "4GB", that the call may take beside the weights
                and the images it returns: as many images as fit are made at once, and ids stay the
                same. See batch_memory.py.

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
        condition, null_condition = self.encode_condition(class_labels, num_images_per_prompt)

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
        class_labels: int | str | list[int | str] | None = None,
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

        One-stage models draw uniform random members of the cluster_map, or ask the refiner;
        two-stage models hold the first stage and sample the second. Refiners with a class prefix or
        a context and two-stage models need `class_labels` (one, or one an image).

        Args:
            clusters: (B, G, G) clusters or semantic codes, as `output_type="clusters"` gives them.
            ids: or ids (B, G, G), (B, G, G, 2), whose clusters are kept.
            refine: "member", or "refiner" for a one-stage pipeline that has one.
            refiner_settings: as for `__call__`.
            latents: another name of `ids`, after diffusers.
            settings: what else `__call__` takes, for two-stage models (guidance_scale, top_k, ...).

        The other arguments are those of `__call__`, an image being a label there.

        Raises:
            TypeError: a tensor given by position, which could be either.
            ValueError: an argument with a value it cannot have; the message names both.
        """
        refuse_positional(tensors)
        clusters = self.clusters_to_keep(truthful("ids", ids, "latents", latents), clusters)
        condition, asked = {}, {}
        if class_labels is not None:
            labels = torch.tensor(self.get_label_ids(class_labels), device=clusters.device)
            labels = spread(labels, len(clusters), "labels")
            condition, asked = {"class_labels": labels}, {"class_labels": labels.tolist()}
        given = num_images_per_prompt, generator, output_type, return_dict
        how = refine, refiner_settings, settings
        return self.redraw_clusters(clusters, condition, asked, "class_labels", *given, *how)
