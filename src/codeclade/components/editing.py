"""Editing on the token grid: which tokens are kept, and which are sampled anew.

Free functions that both pipelines use; an `Edit` is what they hand to `sample_tokens`.

Shapes: B images, n given ones, G token grid side, T = G * G tokens in raster order, S stages of a
position. Fine ids are (B, T), or (B, T, 2) for a tokenizer with a detail codebook.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from .cluster_map import ClusterMap
from .transformer import CodecladeTransformer
from .vq_model import VQModel, check_range


class Edit(NamedTuple):
    """What is known of the images before sampling, and where it may change."""

    ids: Tensor | None  # (B, T) or (B, T, 2) fine ids; None where only clusters are known
    tokens: Tensor  # the same in the transformer's vocabulary
    choices: Tensor  # (B, T, S) what every stage has to choose to give `tokens`
    redo: Tensor  # (B, T, S) bool, True where a stage is sampled
    start: int  # first position that changes in any image
    stop: int  # one after the last

    def of(self, images: slice) -> "Edit":
        """That of some of the images."""
        ids = None if self.ids is None else self.ids[images]
        rows = self.tokens[images], self.choices[images], self.redo[images]
        return Edit(ids, *rows, self.start, self.stop)


def check_edit(image: Any, mask: Any, strength: float, ids: Any, clusters: Any) -> None:
    """Raise a ValueError unless these arguments of a pipeline call go together."""
    if sum(given is not None for given in (image, ids, clusters)) > 1:
        raise ValueError("give one of init_image, ids and clusters, not several.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength!r} must be between 0 and 1.")
    # Without a mask or a strength nothing of the image would be left, which is no edit.
    partly = mask is not None or strength < 1
    known = image is not None or ids is not None
    if partly and not known:
        raise ValueError("mask_image and strength need an init_image or ids to change.")
    if known and not partly:
        raise ValueError(
            "everything would change: give mask_image, or a strength below 1, with init_image."
        )


def truthful(name: str, value: Any, alias: str, other: Any) -> Any:
    """The value of an argument that may be given under diffusers' name instead of ours.

    Raises:
        ValueError: given under both names.
    """
    if value is not None and other is not None:
        raise ValueError(f"{alias} is another name of {name}; give one of the two.")
    return other if value is None else value


def token_mask(mask: Any, grid: int) -> Tensor:
    """Tokens (n, G, G), True where any pixel of a token's cell is white, true or above one half.

    Args:
        mask: a PIL image, a tensor or array (H, W), (n, H, W), (n, 1, H, W) or (n, H, W, 1), or a
            list of images; it is stretched over the whole grid.

    Raises:
        ValueError: a mask of another shape.
    """
    if isinstance(mask, (list, tuple)):
        return torch.cat([token_mask(one, grid) for one in mask])
    # Every kind of mask becomes one (n, H, W) of numbers from 0 to 1.
    if isinstance(mask, Image.Image):
        mask = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy([mask.convert("L")]))
    mask = torch.as_tensor(mask).float()
    for channel in (1, 3):  # where torch and numpy keep it
        if mask.ndim == 4 and mask.shape[channel] == 1:
            mask = mask.squeeze(channel)
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask_image has shape {tuple(mask.shape)}; it must be (n, H, W).")
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
    # The maximum, not the mean: a cell that the mask touches at all has to change.
    return F.adaptive_max_pool2d(mask.unsqueeze(1), grid).squeeze(1) > 0.5


def thin_mask(redo: Tensor, strength: float, uniforms: Tensor) -> Tensor:
    """Keep a share `strength` of the True tokens of every row (B, T), chosen by uniforms (B, T)."""
    # Tokens outside the mask rank last, as 2 is above every uniform number.
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
    """Cluster (B, T) of every fine id, or the semantic code of a pair."""
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
    return Edit(ids, tokens, choices, redo, *bounds(redo))


def edit_of_clusters(clusters: Tensor, transformer: CodecladeTransformer) -> Edit:
    """Keep the first stage's choices (B, T) everywhere; the second stage is sampled.

    Raises:
        ValueError: a transformer with one stage.
    """
    scheme = transformer.scheme
    if not scheme.two_stages:
        raise ValueError(f"scheme {scheme.name!r} has one stage; clusters are for two.")
    choices = torch.stack([clusters, torch.zeros_like(clusters)], dim=-1)  # (B, T, 2)
    redo = torch.tensor([False, True], device=clusters.device).expand_as(choices)
    return Edit(None, scheme.choices_to_tokens(choices), choices, redo, 0, clusters.shape[1])


def bounds(redo: Tensor) -> tuple[int, int]:
    """First position that changes in any image of redo (B, T, S), and one after the last."""
    # Over the whole batch: images are sampled in step, so the earliest change starts all.
    changes = redo.any(-1).any(0).nonzero()
    return (int(changes[0]), int(changes[-1]) + 1) if len(changes) else (0, 0)


def prepare_edit(
    count: int,
    vq_model: VQModel,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    processor: VaeImageProcessor,
    device: torch.device,
    init_image: Any = None,
    mask_image: Any = None,
    ids: Tensor | None = None,
    clusters: Tensor | None = None,
    strength: float = 1.0,
    uniforms: Tensor | None = None,
) -> Edit | None:
    """What a call for `count` images keeps of images, ids or clusters; None where nothing is given.

    Args:
        processor: brings images to the pipeline's size.
        device: where tokens are sampled.
        ids: (n, G, G) or (n, G, G, 2).
        clusters: (n, G, G).
        uniforms: (count, T), `Draws.strength`; needed for a strength below 1.

    Raises:
        ValueError: shapes, numbers of rows or entries that do not fit.
    """
    grid = transformer.config.grid_size
    # Clusters are kept everywhere: there is no mask.
    if clusters is not None:
        if transformer.scheme.two_stages:
            clusters = clusters_in_raster(clusters, transformer, cluster_map).to(device)
        return edit_of_clusters(spread(clusters, count, "clusters"), transformer)
    if init_image is None and ids is None:
        return None
    if ids is None:
        ids = encode_images(init_image, vq_model, processor, grid, device)
    else:
        ids = ids_in_raster(ids, vq_model, grid)
    # The mask says where tokens may change, strength how many of those do.
    redo = torch.ones(1, grid, grid) > 0 if mask_image is None else token_mask(mask_image, grid)
    redo = spread(redo.cpu().flatten(1), count, "masks")  # (B, T)
    if strength < 1:
        redo = thin_mask(redo, strength, cast(Tensor, uniforms))
    ids = spread(ids.to(device), count, "initial images")
    return edit_of_ids(ids, redo, transformer, cluster_map)


def encode_images(
    images: Any,
    vq_model: VQModel,
    processor: VaeImageProcessor,
    grid: int,
    device: torch.device,
) -> Tensor:
    """Ids (n, T, ...) of one image or many, resized to `grid` tokens a side."""
    # The pipeline's own size, since the grid of the generator is fixed.
    side = grid * vq_model.downsample
    images = images if isinstance(images, (list, tuple)) else [images]
    images = [one.convert("RGB") if isinstance(one, Image.Image) else one for one in images]
    pixels = torch.cat([processor.preprocess(one, side, side) for one in images])
    pixels = pixels.to(device, vq_model.dtype)  # (n, 3, H, W)
    return vq_model.encode(pixels).ids.flatten(1, 2)


def ids_in_raster(ids: Tensor, vq_model: VQModel, grid: int) -> Tensor:
    """Ids (n, G, G, ...) as (n, T, ...).

    Raises:
        ValueError: another shape, or ids out of range.
    """
    sizes = [vq_model.codebook_size]
    shape = (grid, grid)
    if vq_model.detail_codebook_size is not None:
        sizes, shape = [*sizes, vq_model.detail_codebook_size], (grid, grid, 2)
    check_grid("ids", ids, shape)
    for values, size in zip(ids.unbind(-1) if len(sizes) > 1 else [ids], sizes, strict=True):
        check_range(values, size, "id")
    return ids.long().flatten(1, 2)


def clusters_in_raster(
    clusters: Tensor, transformer: CodecladeTransformer, cluster_map: ClusterMap | None
) -> Tensor:
    """Clusters (n, G, G) as (n, T).

    Raises:
        ValueError: another shape, or clusters out of range.
    """
    grid = transformer.config.grid_size
    check_grid("clusters", clusters, (grid, grid))
    # Only pipelines with clusters come here, so there is a number of them.
    check_range(clusters, cast(int, transformer.scheme.num_clusters(cluster_map)), "cluster")
    return clusters.long().flatten(1, 2)


def check_grid(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless `values` is a batch of grids of this shape."""
    if tuple(values.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape (B, {wanted}), got {tuple(values.shape)}.")


def clusters_to_keep(
    ids: Tensor | None,
    clusters: Tensor | None,
    vq_model: VQModel,
    transformer: CodecladeTransformer,
    cluster_map: ClusterMap | None,
    device: torch.device,
) -> Tensor:
    """Clusters (n, T) of what `redraw` is given: ids (n, G, G, ...) or clusters (n, G, G).

    Raises:
        ValueError: both or none given, a pipeline without clusters, or tensors that do not fit.
    """
    scheme = transformer.scheme
    if (clusters is None) == (ids is None):
        raise ValueError("redraw takes clusters or ids: give one of the two.")
    if scheme.num_clusters(cluster_map) is None:
        raise ValueError("redraw needs a cluster_map or a two-stage transformer.")
    if clusters is not None:
        return clusters_in_raster(clusters, transformer, cluster_map).to(device)
    given = cast(Tensor, ids)  # one of the two, see above
    kept = ids_in_raster(given, vq_model, transformer.config.grid_size).to(device)
    return clusters_of(kept, transformer, cluster_map)


def refuse_positional(tensors: tuple) -> None:
    """Ids and clusters look the same, so `redraw` takes neither by position.

    Raises:
        TypeError: something was given by position.
    """
    if tensors:
        raise TypeError(
            "redraw takes its tensor by name, since ids and clusters look alike: "
            "redraw(clusters=...) or redraw(ids=...)."
        )
