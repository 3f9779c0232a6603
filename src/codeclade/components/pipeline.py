"""CodecladePipeline: class names to images with VQ tokenizer, cluster map and generator.

The generator samples clusters (MASC arXiv 2510.04220, DCPE arXiv 2508.10719) or ids (LlamaGen
arXiv 2406.06525) in raster order; clusters become ids by a uniform member draw; the tokenizer
decodes the ids. Guidance and filters are LlamaGen's.

Shapes: B images, P prefix positions, T = G * G tokens, V vocabulary.
"""

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import StaticCache

from .cluster_map import ClusterMap
from .sampling import guide, image_uniforms, sample
from .transformer import CodecladeTransformer
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


def check_weight_files(folder: Path) -> None:
    """Make sure every model component of a local pipeline folder has whole weight files.

    Raises:
        OSError: naming the component without weights, or the truncated file.
    """
    index = json.loads((folder / "model_index.json").read_text())
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and value[0] and value[1]):
            continue
        part = folder / name
        if not (part / "config.json").is_file():
            raise OSError(
                f"{part} is missing: model_index.json names it, so config.json must be there."
            )
        files = sorted(part.glob("*.safetensors"))
        if not files:
            raise OSError(f"{part} holds no weights; a .safetensors file must be there.")
        for file in files:
            size = file.stat().st_size
            with file.open("rb") as stream:
                header_size = int.from_bytes(stream.read(8), "little")
                if header_size + 8 <= size:
                    header = json.loads(stream.read(header_size))
                    ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
                    header_size += max(ends, default=0)
            if header_size + 8 > size:
                raise OSError(f"{file} is truncated: {size} bytes of {header_size + 8}.")


class CodecladePipeline(DiffusionPipeline):
    """Class-conditional image generation over clustered codes.

    Args:
        vq_model: the image tokenizer.
        transformer: the generator; its `config.scheme` says whether it predicts ids or clusters.
        cluster_map: needed by the "cluster" scheme.
        id2label: class names by class id (ids as strings, as JSON keeps them); several names of one class are separated by commas.
        guidance_scale, temperature, top_k, top_p: what `__call__` uses where nothing is given.

    Raises:
        ValueError: components that do not belong together.
    """

    model_cpu_offload_seq = "transformer->cluster_map->vq_model"
    _optional_components = ["cluster_map"]  # noqa: RUF012 (diffusers reads a list)
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
    ):
        super().__init__()
        self.register_modules(vq_model=vq_model, transformer=transformer, cluster_map=cluster_map)
        self.register_to_config(
            id2label={str(key): name for key, name in (id2label or {}).items()},
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        self._check_components()
        self.image_processor = VaeImageProcessor(vae_scale_factor=vq_model.downsample)
        self._guidance_scale = guidance_scale
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As in diffusers; weights of a local folder are checked first, so that an error is short."""
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file():
            check_weight_files(folder)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _check_components(self) -> None:
        """Raise a ValueError unless tokenizer, map and generator speak of the same codes."""
        codes, scheme = self.vq_model.codebook_size, self.transformer.config.scheme
        vocabulary, cluster_map = self.transformer.config.vocab_size, self.cluster_map
        if scheme == "cluster" and cluster_map is None:
            raise ValueError("a transformer of scheme 'cluster' needs a cluster_map.")
        if cluster_map is not None and not cluster_map.matches(self.vq_model.codebook):
            raise ValueError(
                f"cluster_map was made from another codebook than vq_model's "
                f"{tuple(self.vq_model.codebook.shape)}; cluster that codebook again."
            )
        expected = cluster_map.num_clusters if scheme == "cluster" else codes
        if vocabulary != expected:
            raise ValueError(
                f"transformer predicts {vocabulary} {scheme}s, but there are {expected}; "
                "load the parts that were trained together."
            )

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

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
        names: dict[str, list[int]] = {}
        for key, value in self.config.id2label.items():
            for name in {value, *value.split(",")}:
                names.setdefault(name.strip().lower(), []).append(int(key))
        return names

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
        return [self._label_id(label) for label in asked]

    def _label_id(self, label: int | str) -> int:
        count = self.transformer.config.num_classes
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < count:
                raise ValueError(f"class id {label} is outside 0..{count - 1}.")
            return label
        if not isinstance(label, str):
            raise ValueError(f"class label {label!r} must be a class name or an integer id.")
        names = self.labels
        found = sorted(set(names.get(label.strip().lower(), [])))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"class name {label!r} means several classes; give one of ids {found}."
            )
        if not names:
            raise ValueError(f"this pipeline has no class names; give an id 0..{count - 1}.")
        wanted = label.strip().lower()
        near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
        near += [name for name in names if wanted and wanted in name and name not in near]
        hint = f"did you mean {', '.join(near[:5])}?" if near else f"known: {', '.join(names)}."
        raise ValueError(f"unknown class name {label!r}; {hint}")

    def check_inputs(
        self,
        guidance_scale: float,
        temperature: float,
        top_k: int,
        top_p: float,
        num_images_per_prompt: int,
        output_type: str,
    ) -> None:
        """Raise a ValueError that names the first argument with a value it cannot have."""
        checks = (
            ("guidance_scale", guidance_scale, guidance_scale >= 0, "0 or more"),
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
        if output_type == "cluster" and self.cluster_map is None:
            raise ValueError(
                "output_type='cluster' needs a cluster_map, which this pipeline lacks."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | list[int | str],
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Generate images of classes.

        Args:
            class_labels: class names or ids, one or many.
            guidance_scale: classifier-free guidance, active above 1. None: the repo's default, as
                for the next three.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: sample among the k most likely tokens; 0 means all.
            top_p: sample among the fewest tokens that hold this share of the probability.
            num_images_per_prompt: images a label.
            generator: one torch generator, or one for every image; same seed, same image, alone or
                in a batch.
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], "latent"
                (fine ids, (B, G, G)) or "cluster" (cluster ids, (B, G, G)).
            return_dict: False returns a plain tuple.
            callback_on_step_end: called as `callback(pipe, step, token, kwargs)`; may return a dict
                with changed `latents` (the tokens so far, (B, T)).
            callback_on_step_end_tensor_inputs: names the callback is given; only "latents".

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of it.

        Raises:
            ValueError: an argument with a value it cannot have; the message names both.

        Examples:
        """
        defaults = self.config
        guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        temperature = defaults.temperature if temperature is None else temperature
        top_k = defaults.top_k if top_k is None else top_k
        top_p = defaults.top_p if top_p is None else top_p
        self.check_inputs(
            guidance_scale, temperature, top_k, top_p, num_images_per_prompt, output_type
        )
        label_ids = self.get_label_ids(class_labels)
        self._guidance_scale, self._interrupt = guidance_scale, False
        labels = torch.tensor(label_ids, device=self._execution_device)
        labels = labels.repeat_interleave(num_images_per_prompt)
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(f"{len(generator)} generators were given for {len(labels)} images.")
        uniforms = image_uniforms(len(labels), (2, self.num_timesteps), generator)
        null = torch.full_like(labels, self.transformer.config.num_classes)
        tokens = self._sample_tokens(
            {"class_labels": labels},
            {"class_labels": null},
            uniforms[:, 0].to(labels.device),
            {"temperature": temperature, "top_k": top_k, "top_p": top_p},
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        images = self._to_output(tokens, uniforms[:, 1], output_type)
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
    ) -> Tensor:
        """Tokens (B, T) of `transformer`, one a step.

        Args:
            condition: keyword arguments of the first forward call, each with B rows.
            null_condition: the same for the unconditional half of the guidance batch.
            uniforms: (B, T) numbers in [0, 1), one a token.
            knobs: temperature, top_k, top_p.
        """
        config = self.transformer.config
        batch, steps = uniforms.shape
        guided = self.do_classifier_free_guidance
        if guided:
            condition = {
                key: torch.cat([value, null_condition[key]]) for key, value in condition.items()
            }
        cache = StaticCache(config, max_cache_len=config.prefix_length + steps)
        latents = torch.zeros(batch, steps, dtype=torch.int64, device=uniforms.device)
        inputs = condition
        with self.progress_bar(total=steps) as bar:
            for step in range(steps):
                if self._interrupt:
                    break
                logits = self.transformer(**inputs, past_key_values=cache).logits[:, -1]
                if guided:
                    conditional, unconditional = logits.chunk(2)
                    # A callback may change the scale; at 1 or less the condition alone speaks.
                    logits = (
                        guide(conditional, unconditional, self._guidance_scale)
                        if self.do_classifier_free_guidance
                        else conditional
                    )
                latents[:, step] = sample(logits, uniforms[:, step], **knobs)
                if callback is not None:
                    given = dict.fromkeys(callback_inputs, latents)
                    latents = (callback(self, step, step, given) or {}).get("latents", latents)
                token = latents[:, step : step + 1]
                inputs = {"input_ids": torch.cat([token, token]) if guided else token}
                if "attention_mask" in condition:
                    inputs["attention_mask"] = condition["attention_mask"]
                bar.update()
        return latents

    def _to_output(self, tokens: Tensor, uniforms: Tensor, output_type: str):
        """Tokens (B, T) as ids, clusters or images; clusters become ids by a member draw."""
        grid = self.transformer.config.grid_size
        clustered = self.transformer.config.scheme == "cluster"
        if output_type == "cluster":
            clusters = tokens if clustered else self.cluster_map.to_clusters(tokens)
            return clusters.unflatten(1, (grid, grid))
        ids = self.cluster_map.draw_members(tokens, uniforms=uniforms) if clustered else tokens
        ids = ids.unflatten(1, (grid, grid))
        if output_type == "latent":
            return ids
        pixels = self.vq_model.decode(ids).float()
        return self.image_processor.postprocess(pixels, output_type=output_type)
