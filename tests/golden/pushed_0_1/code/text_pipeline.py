"""CodecladeTextPipeline: captions to images with a T5 encoder, VQ tokenizer and generator.

LlamaGen's text-conditional models (arXiv 2406.06525): 120 FLAN-T5-XL features of the caption are
the generator's prefix, padded on the left and masked. Sampling is CodecladePipeline's.
Must stay numerically equal to the published t2i_*.pt (see hub/convert.py).

Shapes: B images, P prefix positions, T = G * G tokens, C width of the text features.
"""

# codeclade 0.1.0 (MIT licence), put together from src/codeclade/components/ (loading.py,
# guidance.py, sampling.py, transformer.py, refiner.py, vq_model.py, compatibility.py, editing.py,
# labels.py, pipeline.py, text_pipeline.py), so that this repository loads where codeclade is not
# installed.

import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.models.modeling_utils import ModelMixin as ClusterMap
from diffusers.models.modeling_utils import ModelMixin as VQModel
from transformers import PreTrainedModel as CodecladeTransformer
from transformers import PreTrainedModel as Refiner
import torch
import torch.nn.functional as F
from PIL import Image
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, StaticCache, T5EncoderModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


# How indexes name this package's classes: by module, or by code that came with a repository.
OWN_CODE = re.compile(r"codeclade(\.|$)|(diffusers_modules\.[\w.]*\.)?modeling_codeclade_\w+$")


def installed_index(index: dict[str, Any]) -> dict[str, Any]:
    """A model_index.json whose own code files are replaced by the installed codeclade.

    Repositories say `["modeling_codeclade_vq_model", "VQModel"]` and carry that file, so that they
    load without codeclade; with it there is nothing to trust and one class of each name.
    """
    index = dict(index)
    name = index.get("_class_name")
    if isinstance(name, list) and name:
        index["_class_name"] = name[-1]
    for name, value in index.items():
        own = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        if own and OWN_CODE.match(value[0]):
            index[name] = ["codeclade", value[1]]
    return index


def check_weight_files(folder: Path, given: tuple[str, ...] = ()) -> None:
    """Make sure every model component of a local pipeline folder has whole weight files.

    Components that are `given` are not loaded, so they may be missing.

    Raises:
        OSError: naming the component without weights, or the truncated file.
    """
    index = installed_index(json.loads((folder / "model_index.json").read_text()))
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and value[0] and value[1]):
            continue  # a setting, or an optional component that is not there
        if name in given or name == "tokenizer":  # a text tokenizer has no weights
            continue
        check_weights(folder / name)


def check_weights(part: Path) -> None:
    """Raise an OSError unless a component's folder has a config and all of its weights, whole."""
    if not (part / "config.json").is_file():
        raise OSError(
            f"{part} is missing: model_index.json names it, so config.json must be there."
        )
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise OSError(f"{part} holds no weights; a .safetensors file must be there.")
    for file in files:
        check_whole(file)
    for index in part.glob("*.safetensors.index*.json"):
        listed = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(listed - {file.name for file in files})
        if missing:
            raise OSError(f"{part / missing[0]} is missing: {index.name} lists it.")


def check_whole(file: Path) -> None:
    """Raise an OSError unless a .safetensors file holds weights and is as long as it says."""
    size, ends = file.stat().st_size, []
    with file.open("rb") as stream:
        expected = int.from_bytes(stream.read(8), "little") + 8
        if expected <= size:
            header = json.loads(stream.read(expected - 8))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected += max(ends, default=0)
    if expected > size:
        raise OSError(f"{file} is truncated: {size} bytes of {expected}.")
    if not ends:
        raise OSError(f"{file} holds no weights.")


Number = float | tuple[float, float]  # a pair has one value for each stage of a position


def constant(scale: float, step: int, steps: int, attended: Tensor | None) -> float:
    """The same scale at every token."""
    return scale


def interval(
    scale: float, step: int, steps: int, attended: Tensor | None, *, last_step: Number
) -> float:
    """LlamaGen's cfg_interval: no guidance after decoding step `last_step`.

    Decoding step i makes token i + 1 (the prefix itself gives token 0), so tokens 0..last_step + 1
    are guided; -1 guides all of them.
    """
    return scale if last_step < 0 or step <= last_step + 1 else 1.0


def linear(
    scale: float, step: int, steps: int, attended: Tensor | None, *, start: Number = 1.0
) -> float:
    """From `start` at the first token to `scale` at the last, n / (S - 1) of the way at token n."""
    return start + (scale - start) * progress(step, steps)


def cosine_power(
    scale: float, step: int, steps: int, attended: Tensor | None, *, power: Number = 2.75
) -> float:
    """RAR's power-cosine: 1 + (scale - 1) (1 - cos(pi (n / S)^power)) / 2.

    Published powers: RAR-B 2.75, L 2.5, XL 1.5, XXL 1.2.
    """
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (step / steps) ** power)) / 2


def attention(
    scale: float,
    step: int,
    steps: int,
    attended: Tensor,
    *,
    start: Number = 1.75,
    weight: Number = 0.1,
) -> Tensor:
    """IAR2's scale (B, 1): later tokens and tokens that look at the condition get more guidance.

        s = start (1 - w) + scale w        w = n / (S - 1) + weight a

    Not clamped, so the last tokens may exceed `scale`. Published: 1.75 to 2.5 with weight 0.1, or
    to 3.0 with weight 0.05.

    Args:
        attended: (B,) share a of the last layer's attention that falls on the condition.
    """
    share = progress(step, steps) + weight * attended.unsqueeze(-1)
    return start * (1 - share) + scale * share


SCHEDULES = {
    function.__name__: function
    for function in (constant, interval, linear, cosine_power, attention)
}


def progress(step: int, steps: int) -> float:
    """0 at the first token, 1 at the last; 0.5 if there is only one."""
    return step / (steps - 1) if steps > 1 else 0.5


class Schedule:
    """A guidance schedule with its parameters.

    Args:
        given: None (constant), a name, or a dict of `name` and that schedule's parameters, which
            may be pairs for the two stages of a position.

    Raises:
        ValueError: an unknown name or parameter, or one that is missing or no number.
    """

    def __init__(self, given: str | dict | None):
        parameters = {"name": given or "constant"} if not isinstance(given, dict) else dict(given)
        self.name = parameters.pop("name", None)
        if self.name not in SCHEDULES:
            raise ValueError(
                f"guidance_schedule {self.name!r} is unknown; use one of {', '.join(SCHEDULES)}."
            )
        self.function: Callable = SCHEDULES[self.name]
        known = {
            key: parameter.default
            for key, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for key, value in parameters.items():
            if key not in known:
                raise ValueError(
                    f"guidance_schedule {self.name!r} has no parameter {key!r}; "
                    f"it has {', '.join(known) or 'none'}."
                )
            numbers = _pair(value)
            if len(numbers) != 2 or not all(isinstance(n, (int, float)) for n in numbers):
                raise ValueError(f"guidance_schedule {key}={value!r} must be a number or two.")
        for key, default in known.items():
            if default is inspect.Parameter.empty and key not in parameters:
                raise ValueError(f"guidance_schedule {self.name!r} needs a number {key!r}.")
        self.parameters = parameters

    @property
    def uses_attention(self) -> bool:
        return self.name == "attention"

    def scale_at(
        self, scale: Number, step: int, steps: int, stage: int, attended: Tensor | None
    ) -> float | Tensor:
        """The scale of one stage at one step; pairs give each stage its own number."""
        parameters = {key: _pair(value)[stage] for key, value in self.parameters.items()}
        return self.function(_pair(scale)[stage], step, steps, attended, **parameters)


def _pair(value: Number) -> tuple[float, float]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance u + s (c - u) of logits (B, V); s a number or (B, 1)."""
    return unconditional + scale * (conditional - unconditional)


def filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` largest of each row (ties with the last kept stay); 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def filter_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely entries whose probabilities reach `top_p`; 1.0 keeps all."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
    return logits.masked_fill(drop, -torch.inf)


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (B, V) after temperature, then top-k, then top-p (LlamaGen's order)."""
    return filter_top_p(filter_top_k(logits / temperature, top_k), top_p).softmax(-1)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (B,) drawn from rows of `probs` (B, V) by one number in [0, 1) each (B,)."""
    wide = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(wide).cumsum(-1)
    target = uniforms.to(probs.device, wide).unsqueeze(-1) * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return index.clamp_max(probs.shape[-1] - 1)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Tokens (B,) from logits (B, V); temperature 0 is arg-max."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(probabilities(logits.float(), temperature, top_k, top_p), uniforms)


def image_uniforms(
    count: int,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
) -> Tensor:
    """Uniform numbers (count, *shape) on the CPU, a stream of its own for every image.

    Each image's stream is seeded by one draw from its generator, so the first image of a batch and
    the same image made alone get the same numbers.
    """
    generators = generator if isinstance(generator, list) else [generator] * count
    streams = []
    for source in generators:
        device = source.device if source is not None else "cpu"
        seed = torch.randint(2**62, (), generator=source, device=device).item()
        own = torch.Generator().manual_seed(seed)
        streams.append(torch.rand(shape, generator=own))
    return torch.stack(streams)


@dataclass
class CodecladeOutput(ModelOutput):
    """What `CodecladeTransformer.forward` returns."""

    loss: Tensor | None = None  # mean cross-entropy a token (or pair) in nats
    logits: Tensor | None = None  # (B, L, V) float32; position P-1+t predicts token t
    past_key_values: Cache | None = None
    cluster_logits: Tensor | None = None  # cluster_token: (B, L, K), positions as `logits`
    semantic_logits: Tensor | None = None  # semantic_detail: (B, T, K); position t predicts pair t
    detail_logits: Tensor | None = None  # (B, T, V), given the true semantic code of pair t
    hidden_states: Tensor | None = None  # (B, L, D), what the head reads
    condition_attention: Tensor | None = None  # (B,) last query's share on the prefix


WAYS = ("refiner", "member")  # how clusters become ids


@torch.no_grad()
def generator_states(
    transformer: CodecladeTransformer, clusters: Tensor, **condition: Tensor
) -> Tensor:
    """Hidden states (B, T, C) from which a generator predicted clusters (B, T).

    One teacher-forced pass; the states are those its head reads, and the
    context of MASC's refiner.

    Args:
        condition: `class_labels`, or `text_embeds` and `attention_mask`.
    """
    if "attention_mask" in condition:
        length = transformer.config.prefix_length + clusters.shape[1] - 1
        condition["attention_mask"] = condition["attention_mask"][:, :length]
    output = transformer(input_ids=clusters[:, :-1], return_logits=False, **condition)
    return output.hidden_states[:, -clusters.shape[1] :]


def clusters_to_ids(
    clusters: Tensor,
    uniforms: Tensor,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap,
    refiner: Refiner | None = None,
    way: str | None = None,
    condition: dict[str, Tensor] | None = None,
) -> Tensor:
    """Ids (B, T) of clusters (B, T), by a refiner or by a uniform member draw.

    Args:
        uniforms: (B, T) numbers in [0, 1).
        transformer: the generator that made the clusters, for a refiner that reads its states.
        way: "refiner" or "member"; None: the refiner, if there is one.
        condition: what the generator was given: class_labels, or text_embeds and attention_mask.

    Raises:
        ValueError: an unknown way, or "refiner" without a refiner.
    """
    if way not in (None, *WAYS) or (way == "refiner" and refiner is None):
        there = "one is loaded" if refiner is not None else "none is loaded"
        raise ValueError(f"refine={way!r} must be one of {WAYS}; as to refiners, {there}.")
    if refiner is None or way == "member":
        return cluster_map.draw_members(clusters, uniforms=uniforms)
    condition, context = condition or {}, None
    if refiner.config.context_dim:
        if not condition:
            raise ValueError("this refiner reads the generator's states; give class_labels.")
        context = generator_states(transformer, clusters, **condition)
    labels = condition.get("class_labels")
    return refiner.refine(clusters, labels, cluster_map, context, uniforms=uniforms)


def check_range(values: Tensor, size: int, what: str) -> None:
    """Raise a ValueError that names the first of `values` outside 0..size - 1."""
    outside = values[(values < 0) | (values >= size)]
    if outside.numel():
        raise ValueError(f"{what} {int(outside[0])} is outside 0..{size - 1}.")


def check_components(
    vq_model: VQModel,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    refiner: Refiner | None,
) -> None:
    """Raise a ValueError unless tokenizer, map, generator and refiner speak of the same codes."""
    config = transformer.config
    codes, details = vq_model.codebook_size, vq_model.detail_codebook_size
    if config.scheme == "cluster" and cluster_map is None:
        raise ValueError("a transformer of scheme 'cluster' needs a cluster_map.")
    if cluster_map is not None and not cluster_map.matches(vq_model.codebook):
        raise ValueError(
            f"cluster_map was made from another codebook than vq_model's "
            f"{tuple(vq_model.codebook.shape)}; cluster that codebook again."
        )
    if (details is not None) != (config.scheme == "semantic_detail"):
        raise ValueError(
            f"a transformer of scheme {config.scheme!r} does not fit a vq_model with "
            f"detail_codebook_size={details}; detail codes go with 'semantic_detail'."
        )
    expected = {
        "token": [("tokens", config.vocab_size, codes)],
        "cluster": [("clusters", config.vocab_size, getattr(cluster_map, "num_clusters", 0))],
        "cluster_token": [("tokens", config.vocab_size, codes)],
        "semantic_detail": [
            ("semantic codes", config.coarse_vocab_size, codes),
            ("detail codes", config.vocab_size, details),
        ],
    }
    for what, predicted, there in expected[config.scheme]:
        if predicted != there:
            raise ValueError(
                f"transformer predicts {predicted} {what}, but there are {there}; "
                "load the parts that were trained together."
            )
    if config.scheme == "cluster_token":
        cluster_of = transformer.token_embedding.cluster_of.cpu()
        if len(cluster_of.unique()) != config.coarse_vocab_size:
            raise ValueError("transformer has no clusters yet; give it some by use_clusters.")
        if cluster_map is not None and not torch.equal(cluster_map.mapping.cpu(), cluster_of):
            raise ValueError("cluster_map has other clusters than transformer.")
    if refiner is not None:
        refiner.check_cluster_map(cluster_map)


class Edit(NamedTuple):
    """What is known of the images before sampling, and where it may change."""

    ids: Tensor | None  # (B, T) or (B, T, 2) fine ids; None where only clusters are known
    tokens: Tensor  # the same in the transformer's vocabulary
    choices: Tensor  # (B, T, S) what every stage has to choose to give `tokens`
    redo: Tensor  # (B, T, S) bool, True where a stage is sampled

    def bounds(self) -> tuple[int, int]:
        """First position that changes in any image, and one after the last."""
        changes = self.redo.any(-1).any(0).nonzero()
        return (int(changes[0]), int(changes[-1]) + 1) if len(changes) else (0, 0)


def check_edit(image: Any, mask: Any, strength: float, latents: Any, clusters: Any) -> None:
    """Raise a ValueError unless these arguments of a pipeline call go together."""
    if sum(given is not None for given in (image, latents, clusters)) > 1:
        raise ValueError("give one of init_image, latents and clusters, not several.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength!r} must be between 0 and 1.")
    partly = mask is not None or strength < 1
    known = image is not None or latents is not None
    if partly and not known:
        raise ValueError("mask_image and strength need an init_image or latents to change.")
    if known and not partly:
        raise ValueError(
            "everything would change: give mask_image, or a strength below 1, with init_image."
        )


def token_mask(mask: Any, grid: int) -> Tensor:
    """Tokens (n, G, G), True where any pixel of a token's cell is white, true or above one half.

    Args:
        mask: a PIL image, a tensor or array (H, W), (n, H, W) or (n, 1, H, W), or a list of images;
            it is stretched over the whole grid.

    Raises:
        ValueError: a mask of another shape.
    """
    if isinstance(mask, (list, tuple)):
        return torch.cat([token_mask(one, grid) for one in mask])
    if isinstance(mask, Image.Image):
        mask = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy([mask.convert("L")]))
    mask = torch.as_tensor(mask).float()
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask_image has shape {tuple(mask.shape)}; it must be (n, H, W).")
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
    return F.adaptive_max_pool2d(mask.unsqueeze(1), grid).squeeze(1) > 0.5


def thin_mask(redo: Tensor, strength: float, uniforms: Tensor) -> Tensor:
    """Keep a share `strength` of the True tokens of every row (B, T), chosen by uniforms (B, T)."""
    rank = torch.where(redo, uniforms, 2.0).argsort(-1).argsort(-1)
    return redo & (rank < (redo.sum(-1, keepdim=True) * strength).round())


def spread(values: Tensor, count: int, name: str) -> Tensor:
    """Rows (n, ...) repeated to one for every image (count, ...).

    Raises:
        ValueError: a number of rows that does not divide the number of images.
    """
    if len(values) == 0 or count % len(values):
        raise ValueError(f"{len(values)} {name} were given for {count} images.")
    return values.repeat_interleave(count // len(values), dim=0)


def clusters_of(
    ids: Tensor, transformer: CodecladeTransformer, cluster_map: ClusterMap | None
) -> Tensor:
    """Cluster of every fine id, or the semantic code of a pair."""
    if transformer.config.scheme == "semantic_detail":
        return ids[..., 0]
    if transformer.config.scheme == "cluster_token":
        return transformer.token_embedding.cluster_of.to(ids.device)[ids]
    return cluster_map.to_clusters(ids)


def edit_of_ids(
    ids: Tensor, redo: Tensor, transformer: CodecladeTransformer, cluster_map: ClusterMap | None
) -> Edit:
    """Keep fine ids (B, T, ...) where redo (B, T) is False."""
    config = transformer.config
    tokens = clusters_of(ids, transformer, cluster_map) if config.scheme == "cluster" else ids
    choices = tokens if tokens.ndim == 3 else tokens.unsqueeze(-1)
    if config.scheme == "cluster_token":
        choices = torch.stack([clusters_of(ids, transformer, cluster_map), ids], dim=-1)
    redo = redo.to(ids.device).unsqueeze(-1).expand(-1, -1, config.num_stages)
    return Edit(ids, tokens, choices, redo)


def edit_of_clusters(clusters: Tensor, transformer: CodecladeTransformer) -> Edit:
    """Keep the first stage's choices (B, T) everywhere; the second stage is sampled."""
    choices = torch.stack([clusters, torch.zeros_like(clusters)], dim=-1)
    redo = torch.tensor([False, True], device=clusters.device).expand_as(choices)
    pairs = transformer.config.scheme == "semantic_detail"
    return Edit(None, choices if pairs else choices[..., 1], choices, redo)


class EditingMixin:
    """What a pipeline can do with known ids; it has vq_model, transformer and cluster_map."""

    @torch.no_grad()
    def redraw(
        self,
        clusters: Tensor | None = None,
        latents: Tensor | None = None,
        class_labels: int | str | list[int | str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        refine: str = "member",
        **settings,
    ) -> ImagePipelineOutput | tuple:
        """Same clusters, new details: draw new ids of given clusters.

        One-stage models draw uniform random members of the cluster_map, or ask the refiner;
        two-stage models hold the first stage and sample the second. Refiners with a class prefix or
        a context and two-stage models need `class_labels` (one, or one an image).

        Args:
            clusters: (B, G, G) clusters or semantic codes, as `output_type="cluster"` gives them.
            latents: or ids (B, G, G), (B, G, G, 2), whose clusters are kept.
            refine: "member", or "refiner" for a one-stage pipeline that has one.
            settings: what else `__call__` takes, for two-stage models (guidance_scale, top_k, ...).

        The other arguments are those of `__call__`, an image being a label there.

        Raises:
            ValueError: an argument with a value it cannot have; the message names both.
        """
        config = self.transformer.config
        if (clusters is None) == (latents is None):
            raise ValueError("redraw takes clusters or latents: give one of the two.")
        if config.num_stages == 1 and self.cluster_map is None:
            raise ValueError("redraw needs a cluster_map or a two-stage transformer.")
        if clusters is None:
            ids = self._raster(latents, "latents")
            clusters = clusters_of(ids, self.transformer, self.cluster_map)
        else:
            clusters = self._raster(clusters, "clusters")
        condition = {}
        if class_labels is not None:
            labels = torch.tensor(self.get_label_ids(class_labels), device=clusters.device)
            condition["class_labels"] = spread(labels, len(clusters), "labels")
        if config.num_stages == 2:
            if not condition:
                raise ValueError(f"redraw of scheme {config.scheme!r} needs class_labels.")
            return self(
                condition["class_labels"].tolist(),
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                output_type=output_type,
                return_dict=return_dict,
                clusters=clusters.unflatten(1, (config.grid_size, config.grid_size)),
                **settings,
            )
        if settings:
            raise ValueError(f"redraw of scheme {config.scheme!r} takes no {', '.join(settings)}.")
        self.check_inputs(1.0, 1.0, 0, 1.0, num_images_per_prompt, output_type)
        clusters, *labels = (
            rows.repeat_interleave(num_images_per_prompt, dim=0)
            for rows in (clusters, *condition.values())
        )
        uniforms = image_uniforms(len(clusters), (self.num_timesteps,), generator)
        parts = self.transformer, self.cluster_map, self.refiner
        condition = dict(zip(condition, labels, strict=True))
        ids = clusters_to_ids(clusters, uniforms, *parts, refine, condition)
        images = self._decode(ids, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _edit(
        self, images: Any, mask: Any, strength: float, ids, clusters, uniforms: Tensor
    ) -> Edit | None:
        """What a call keeps of images, ids or clusters; `uniforms` (B, T) go with strength."""
        count, grid = len(uniforms), self.transformer.config.grid_size
        if clusters is not None:
            if self.transformer.config.num_stages == 1:
                scheme = self.transformer.config.scheme
                raise ValueError(f"scheme {scheme!r} has one stage; clusters are for two.")
            clusters = spread(self._raster(clusters, "clusters"), count, "clusters")
            return edit_of_clusters(clusters, self.transformer)
        if images is None and ids is None:
            return None
        ids = self._encode(images) if ids is None else self._raster(ids, "latents")
        redo = torch.ones(1, grid, grid) > 0 if mask is None else token_mask(mask, grid).cpu()
        redo = spread(redo.flatten(1), count, "masks")
        if strength < 1:
            redo = thin_mask(redo, strength, uniforms)
        ids = spread(ids, count, "initial images")
        return edit_of_ids(ids, redo, self.transformer, self.cluster_map)

    def _raster(self, grids: Tensor, name: str) -> Tensor:
        """Ids ("latents") or clusters (n, G, G, ...) as (n, T, ...) on the execution device.

        Raises:
            ValueError: another shape, or entries out of range.
        """
        config, vq_model = self.transformer.config, self.vq_model
        shape, what = (config.grid_size, config.grid_size), "cluster"
        sizes = [config.coarse_vocab_size or getattr(self.cluster_map, "num_clusters", None)]
        if name == "latents":
            sizes, what = [vq_model.codebook_size, vq_model.detail_codebook_size], "id"
            shape += () if sizes[1] is None else (2,)
        if tuple(grids.shape[1:]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{name} must have shape (B, {wanted}), got {tuple(grids.shape)}.")
        for values, size in zip(
            grids.unbind(-1) if len(shape) == 3 else [grids], sizes, strict=False
        ):
            check_range(values, size, what)
        return grids.flatten(1, 2).to(self._execution_device)

    def _encode(self, images: Any) -> Tensor:
        """Ids (n, T, ...) of images, resized to the pipeline's size."""
        side = self.transformer.config.grid_size * self.vq_model.downsample
        images = images if isinstance(images, (list, tuple)) else [images]
        images = [one.convert("RGB") if isinstance(one, Image.Image) else one for one in images]
        pixels = torch.cat([self.image_processor.preprocess(one, side, side) for one in images])
        pixels = pixels.to(self._execution_device, self.vq_model.dtype)
        return self.vq_model.encode(pixels).ids.flatten(1, 2)


def ids_by_name(id2label: Mapping[str, str]) -> dict[str, list[int]]:
    """Class ids by lower-case name, synonyms included; a few names mean several classes."""
    names: dict[str, list[int]] = {}
    for key, value in id2label.items():
        for name in {value, *value.split(",")}:
            names.setdefault(name.strip().lower(), []).append(int(key))
    return names


def label_id(label: int | str, count: int, names: dict[str, list[int]]) -> int:
    """Class id below `count` of a class id or of one of `names` (as `ids_by_name` gives them).

    Raises:
        ValueError: an id out of range, or a name that is unknown (the nearest ones are given) or
            means several classes.
    """
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < count:
            raise ValueError(f"class id {label} is outside 0..{count - 1}.")
        return label
    if not isinstance(label, str):
        raise ValueError(f"class label {label!r} must be a class name or an integer id.")
    wanted = label.strip().lower()
    found = sorted(set(names.get(wanted, [])))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"class name {label!r} means several classes; give one of ids {found}.")
    if not names:
        raise ValueError(f"this pipeline has no class names; give an id 0..{count - 1}.")
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4)
    near += [name for name in names if wanted and wanted in name and name not in near]
    some = ", ".join(near[:5] or list(names)[:20])
    hint = f"did you mean {some}?" if near else f"known: {some}."
    raise ValueError(f"unknown class name {label!r}; {hint}")


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
        scheme = self.transformer.config.scheme
        if output_type == "cluster" and scheme == "token" and self.cluster_map is None:
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
        batch, stages, steps = uniforms.shape
        schedule, guided = schedule or Schedule(None), self.do_classifier_free_guidance
        if guided:
            condition = {
                key: torch.cat([value, null_condition[key]]) for key, value in condition.items()
            }
        pair = (2,) if config.scheme == "semantic_detail" else ()
        latents = torch.zeros(batch, steps, *pair, dtype=torch.int64, device=uniforms.device)
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
                    return_logits=stages == 1,
                    output_condition_attention=guided and schedule.uses_attention,
                )
                if stages == 2:
                    hidden = _remember(hidden, output.hidden_states, step, steps, start)
                choices = self._choose(output, hidden, step, uniforms, knobs, schedule, edit)
                latents[:, step] = choices if pair else choices[:, -1]
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
            if stages == 1:
                logits = output.logits[:, -1]
            else:
                chosen = _twice(choices[-1], guided) if choices else None
                logits = self.transformer.stage_logits(hidden, step, chosen, cache)
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
        clustered = self.transformer.config.scheme == "cluster"
        if output_type == "cluster":
            if not clustered:
                tokens = clusters_of(tokens, self.transformer, self.cluster_map)
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
