"""Editing on the token grid: which tokens are kept, and which are sampled anew.

Shapes: B images, n given ones, G token grid side, T = G * G tokens in raster order, S stages of a
position. Fine ids are (B, T), or (B, T, 2) for a tokenizer with a detail codebook.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from .cluster_map import ClusterMap
from .refiner import clusters_to_ids
from .sampling import image_uniforms
from .transformer import CodecladeTransformer
from .vq_model import check_range


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
    scheme = transformer.scheme
    return scheme.ids_to_clusters(ids, scheme.mapping(transformer, cluster_map))


def edit_of_ids(
    ids: Tensor, redo: Tensor, transformer: CodecladeTransformer, cluster_map: ClusterMap | None
) -> Edit:
    """Keep fine ids (B, T, ...) where redo (B, T) is False."""
    scheme = transformer.scheme
    mapping = scheme.mapping(transformer, cluster_map)
    tokens = scheme.ids_to_tokens(ids, mapping)
    choices = scheme.tokens_to_choices(tokens, mapping)
    redo = redo.to(ids.device).unsqueeze(-1).expand(choices.shape)
    return Edit(ids, tokens, choices, redo)


def edit_of_clusters(clusters: Tensor, transformer: CodecladeTransformer) -> Edit:
    """Keep the first stage's choices (B, T) everywhere; the second stage is sampled."""
    choices = torch.stack([clusters, torch.zeros_like(clusters)], dim=-1)  # (B, T, 2)
    redo = torch.tensor([False, True], device=clusters.device).expand_as(choices)
    return Edit(None, transformer.scheme.choices_to_tokens(choices), choices, redo)


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
        scheme = self.transformer.scheme
        if scheme.num_clusters(self.cluster_map) is None:
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
        if scheme.two_stages:
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
            scheme = self.transformer.scheme
            if not scheme.two_stages:
                raise ValueError(f"scheme {scheme.name!r} has one stage; clusters are for two.")
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
        sizes = [self.transformer.scheme.num_clusters(self.cluster_map)]
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
