"""VQModel: the image tokenizer, pixels to a grid of codebook ids and back.

The encoder and decoder are diffusers' autoencoder blocks; the quantizers are ours, because LlamaGen
(arXiv 2406.06525) normalizes the latents and the codebook rows on every use, and IAR2 adds a second
codebook for what the first leaves. Must stay numerically equal to LlamaGen's vq_ds16_c2i.pt and
vq_ds8_c2i.pt and to IAR2's 0485000.pt (see checkpoints/).

Shapes: B batch, H W image sides, G = H / downsample token grid side, N codebook size, d code width,
M detail codebook size. `ids` are (B, G, G), or (B, G, G, 2) with a detail codebook.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, cast, overload

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, Encoder
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .fields import Count, Layers, Levels, Side, Width
from .loading import StrictLoading


class VQEncoderOutput(NamedTuple):
    """What `VQModel.encode` returns."""

    ids: Tensor  # (B, G, G) int64, 0..N-1; or (B, G, G, 2), semantic and detail
    latents: Tensor  # (B, d, G, G) encoder output before quantization


def check_range(values: Tensor, size: int, what: str) -> None:
    """Raise a ValueError that names the first of `values` outside 0..size - 1.

    A graph that is compiled or exported has no place for a question to the host; there the
    look-up itself refuses.
    """
    if torch.compiler.is_compiling():
        return
    outside = values[(values < 0) | (values >= size)]
    if outside.numel():
        raise ValueError(f"{what} {int(outside[0])} is outside 0..{size - 1}.")


class CosineQuantizer(nn.Module):
    """Nearest codebook row by cosine; both sides are normalized on use (LlamaGen's quantizer).

    All arithmetic is float32 whatever the dtype of the weights: a bfloat16 search picks other ids.
    Parameters are read in `forward` of their own module alone, which is where offloading brings
    them to the device.
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.normal_(self.embedding.weight)
        with torch.no_grad():
            self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))

    def forward(self, latents: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """`search` of latents, or `lookup` of ids."""
        return self.search(cast(Tensor, latents)) if ids is None else self.lookup(ids)

    def rows(self, device: torch.device | None = None) -> Tensor:
        """The codebook as the decoder sees it: (N, d) float32 rows of unit length.

        Args:
            device: where they are needed; None: where the codebook is.
        """
        device = self.embedding.weight.device if device is None else device
        every = torch.arange(self.embedding.num_embeddings, device=device)
        return F.normalize(self.embedding(every).float(), dim=-1)

    def search(self, latents: Tensor) -> Tensor:
        """Ids (B, G, G) of the rows nearest to latents (B, d, G, G)."""
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=1)
            rows = self.rows(latents.device)
            return torch.einsum("bdhw,nd->bhwn", unit, rows).argmax(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Unit rows (B, d, G, G) float32 of ids (B, G, G)."""
        return F.normalize(self.embedding(ids).float(), dim=-1).permute(0, 3, 1, 2)


class DetailQuantizer(CosineQuantizer):
    """IAR2's two codebooks: the nearest semantic row by cosine, then the nearest detail row to what
    is left of the unit latent. Codes are their sum; the detail rows are not normalized on use.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, detail_codebook_size: int):
        super().__init__(codebook_size, codebook_dim)
        rows = torch.randn(detail_codebook_size, codebook_dim)
        self.detail = nn.Parameter(F.normalize(rows, dim=-1))

    def search(self, latents: Tensor) -> Tensor:
        """Ids (B, G, G, 2), semantic and detail, of latents (B, d, G, G)."""
        with torch.autocast(latents.device.type, enabled=False):
            semantic = super().search(latents)
            rest = F.normalize(latents.float(), dim=1) - super().lookup(semantic)
            rows = self.detail.float()
            nearness = torch.einsum("bdhw,nd->bhwn", rest, rows) - rows.square().sum(-1) / 2
            return torch.stack([semantic, nearness.argmax(-1)], dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (B, d, G, G) float32 of ids (B, G, G, 2)."""
        semantic, detail = ids.unbind(-1)
        return super().lookup(semantic) + F.embedding(detail, self.detail.float()).movedim(-1, 1)


def as_output(images: Tensor, return_dict: bool | None) -> Tensor | DecoderOutput | tuple[Tensor]:
    """Images by themselves (None), or as diffusers' autoencoders return them."""
    if return_dict is None:
        return images
    return DecoderOutput(sample=images) if return_dict else (images,)


DECODING_MEMORY = 2**31  # bytes of activations: a larger batch is decoded in slices
IN_FLOAT32 = ("encoder", "quant_conv", "quantize")  # parts of a VQModel that ids depend on
TO_IMAGES = ("post_quant_conv", "decoder")  # the others, in float32 with `force_upcast` alone
CONFIG_SOURCE = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "proxies")


def placed_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `nn.Module._apply` without its cast to a narrower dtype."""

    def place(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        narrower = result.dtype.itemsize < tensor.dtype.itemsize
        return tensor.to(result.device) if narrower else result

    return place


class VQModel(StrictLoading, ModelMixin, ConfigMixin):
    """LlamaGen-shaped VQ tokenizer (arXiv 2406.06525, section 3.1).

    What ids depend on (encoder, quantization and codebook) stays in float32 when the rest is loaded
    in or cast to half precision: in bfloat16 0.4 % of the ids would be others. With `force_upcast`
    the rest stays in float32 as well, and images are float32 whatever the dtype of a pipeline.

    Args:
        block_out_channels: channels of each resolution level; n levels downsample by 2^(n-1).
        layers_per_block: residual blocks per encoder level (the decoder has one more).
        latent_channels: channels between encoder and the 1x1 quantization convolutions.
        codebook_size: number of codes N.
        codebook_dim: width d of one code.
        norm_num_groups: groups of every GroupNorm; must divide every channel count.
        sample_size: side in pixels of the images the model was trained on.
        detail_codebook_size: codes M of a second codebook (IAR2); ids then are pairs.
        force_upcast: keep and compute everything in float32, for weights or activations that half
            precision cannot hold; as in diffusers' autoencoders.

    Raises:
        ValueError: a channel count that `norm_num_groups` does not divide.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResnetBlock2D", "Attention", "CosineQuantizer", "DetailQuantizer")
    # Lists that diffusers reads.
    _keep_in_fp32_modules = list(IN_FLOAT32)  # noqa: RUF012
    _skip_layerwise_casting_patterns = list(IN_FLOAT32)  # noqa: RUF012
    _group_offload_block_modules = [*IN_FLOAT32, *TO_IMAGES]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        block_out_channels: Levels = (128, 128, 256, 256, 512),
        layers_per_block: Layers = 2,
        latent_channels: Width = 256,
        codebook_size: Count = 16384,
        codebook_dim: Width = 8,
        norm_num_groups: Width = 32,
        sample_size: Side = 256,
        detail_codebook_size: Count | None = None,
        force_upcast: bool = False,
    ):
        super().__init__()
        if force_upcast:  # diffusers' own casts ask the model which parts they must leave alone
            everything = [*IN_FLOAT32, *TO_IMAGES]
            self._keep_in_fp32_modules = self._skip_layerwise_casting_patterns = everything
        # GroupNorm would say so too, but without naming the setting.
        for channels in block_out_channels:
            if channels % norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, which norm_num_groups={norm_num_groups} "
                    "does not divide; use multiples of it."
                )
        # Attention at the lowest resolution only, and no double_z: the encoder gives latents, not a
        # mean and a variance.
        self.slice_size: int | None = None
        levels = len(block_out_channels)
        self.downsample = 2 ** (levels - 1)
        self.encoder = Encoder(
            in_channels=3,
            out_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            double_z=False,
        )
        self.quant_conv = nn.Conv2d(latent_channels, codebook_dim, 1)
        if detail_codebook_size is None:
            self.quantize = CosineQuantizer(codebook_size, codebook_dim)
        else:
            self.quantize = DetailQuantizer(codebook_size, codebook_dim, detail_codebook_size)
        self.post_quant_conv = nn.Conv2d(codebook_dim, latent_channels, 1)
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=3,
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
        )

    @property
    def codebook(self) -> Tensor:
        """The stored codebook (N, d), not normalized: what clustering works on."""
        return self.quantize.embedding.weight

    @property
    def codebook_size(self) -> int:
        return self.config["codebook_size"]

    @property
    def detail_codebook_size(self) -> int | None:
        return self.config["detail_codebook_size"]

    @classmethod
    def loading_options(cls, source: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `from_pretrained`: a `force_upcast` tokenizer is loaded in float32.

        Its weights may not fit into half precision, so the config is read before any is cast.
        """
        named = [options.get(name) for name in ("dtype", "torch_dtype")]
        dtype = next((one for one in named if one is not None), None)
        if not isinstance(dtype, torch.dtype) or dtype.itemsize >= torch.float32.itemsize:
            return options
        forced = options.get("force_upcast")  # as any field, it may be given instead
        if forced is None:
            where = {name: options[name] for name in CONFIG_SOURCE if name in options}
            forced = cast(Any, cls.load_config(source, **where)).get("force_upcast")
        if not forced:
            return options
        rest = {name: value for name, value in options.items() if name != "dtype"}
        return {**rest, "torch_dtype": torch.float32}

    def _apply(self, fn, recurse=True):
        forced = self.config["force_upcast"]
        for name, module in self.named_children():
            module._apply(placed_only(fn) if forced or name in IN_FLOAT32 else fn)
        return self

    def _arithmetic(self, device: torch.device) -> AbstractContextManager:
        """What networks run under: with `force_upcast` autocast has no say."""
        if not self.config["force_upcast"]:
            return nullcontext()
        return torch.autocast(device.type, enabled=False)

    def enable_slicing(self, images: int = 1) -> None:
        """Encode and decode at most `images` at once: less memory, more time, the same result.

        Raises:
            ValueError: fewer than one image.
        """
        if images < 1:
            raise ValueError(f"images={images} must be 1 or more.")
        self.slice_size = images

    def disable_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.slice_size = None

    def _in_slices(
        self, function: Callable[[Tensor], Tensor], batch: Tensor, most: int | None = None
    ) -> Tensor:
        """`function` of a batch, or of its slices one after the other, of `most` at most."""
        size = self.slice_size or most
        if size is None or len(batch) <= size:
            return function(batch)
        return torch.cat([function(one) for one in batch.split(size)])

    def _images_at_once(self, codes: Tensor) -> int | None:
        """How many images of codes (B, d, G, G) are decoded in about `DECODING_MEMORY`; None: all.

        Training needs all activations anyway, and a compiled graph shapes that stay.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        cells = codes.shape[-2] * codes.shape[-1]
        return max(1, DECODING_MEMORY // self.decoding_bytes(cells))

    def decoding_bytes(self, cells: int) -> int:
        """About what the activations of an image of `cells` tokens take while it is decoded."""
        # Four tensors of the widest layer at full size live at once.
        numbers = 4 * cells * self.downsample**2 * max(self.config["block_out_channels"][:2])
        return numbers * self.post_quant_conv.weight.element_size()

    @overload
    def encode(self, pixels: Tensor, return_dict: Literal[True] = True) -> VQEncoderOutput: ...

    @overload
    def encode(self, pixels: Tensor, return_dict: bool) -> VQEncoderOutput | tuple: ...

    @apply_forward_hook
    def encode(self, pixels: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple:
        """Tokenize images.

        Args:
            pixels: (B, 3, H, W) in [-1, 1]; H and W multiples of the downsampling factor.
            return_dict: False returns a plain tuple.

        Returns:
            `VQEncoderOutput(ids, latents)`: ids (B, H/f, W/f), or (B, H/f, W/f, 2) with a detail
            codebook, latents (B, d, H/f, W/f).

        Raises:
            ValueError: pixels of another shape.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have shape (B, 3, H, W), got {tuple(pixels.shape)}.")
        height, width = pixels.shape[-2:]
        if height == 0 or width == 0 or height % self.downsample or width % self.downsample:
            raise ValueError(
                f"image size {height}x{width} does not fit this tokenizer: both sides must be "
                f"positive multiples of {self.downsample}."
            )
        pixels = pixels.to(self.encoder.conv_in.weight.dtype)
        with self._arithmetic(pixels.device):
            latents = self._in_slices(lambda some: self.quant_conv(self.encoder(some)), pixels)
        output = VQEncoderOutput(self._in_slices(self.quantize, latents), latents)
        return output if return_dict else tuple(output)

    @apply_forward_hook
    def decode(self, ids: Tensor, return_dict: bool | None = None) -> Any:
        """Images (B, 3, H, W), about [-1, 1], of ids (B, G, G), with details (B, G, G, 2).

        Flat ids (B, G*G) or (B, G*G, 2) are taken as a square grid in raster order.

        Args:
            return_dict: None returns the images; as in diffusers, True returns a `DecoderOutput`
                whose `sample` they are, False a tuple of one.

        Raises:
            ValueError: a flat length that is no square, or ids outside 0..N-1.
        """
        # A flat (B, T, 2) and a grid (B, G, 2) look alike; only the tokenizer knows which it is.
        pair = () if self.detail_codebook_size is None else (2,)
        fits = ids.shape[ids.ndim - len(pair) :] == pair
        if ids.ndim == 2 + len(pair) and fits:
            grid = int(ids.shape[1] ** 0.5)
            if grid * grid != ids.shape[1]:
                raise ValueError(
                    f"{ids.shape[1]} flat ids form no square grid; "
                    "pass ids of shape (B, rows, columns)."
                )
            ids = ids.unflatten(1, (grid, grid))
        if ids.ndim != 3 + len(pair) or not fits:
            wanted = "(B, rows, columns, 2)" if pair else "(B, rows, columns)"
            raise ValueError(f"ids must have shape {wanted}, got {tuple(ids.shape)}.")
        # Each half of a pair has its own codebook. On a GPU a look-up past its end would end the
        # whole process, so ids are checked first.
        sizes = [self.codebook_size, self.detail_codebook_size][: 1 + len(pair)]
        for values, size in zip(ids.unbind(-1) if pair else [ids], sizes, strict=True):
            check_range(values, size, "id")
        return as_output(self.decode_codes(self.quantize(ids=ids.long())), return_dict)

    @apply_forward_hook
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W) of code vectors (B, d, G, G) of any dtype, in that of the decoder."""
        codes = codes.to(self.post_quant_conv.weight.dtype)

        def pictures(some: Tensor) -> Tensor:
            # With layerwise casting this is the dtype of the arithmetic, not of the storage.
            return self.decoder(self.post_quant_conv(some).to(self.dtype))

        with self._arithmetic(codes.device):
            return self._in_slices(pictures, codes, self._images_at_once(codes))

    def forward(self, pixels: Tensor, return_dict: bool | None = None) -> Any:
        """Reconstruction (B, 3, H, W) of pixels (B, 3, H, W); `return_dict` as for `decode`."""
        return self.decode(self.encode(pixels).ids, return_dict)
