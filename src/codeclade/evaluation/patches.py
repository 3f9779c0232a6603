"""What single codes look like: the patches that they decode to among other codes.

Shapes: f side of the pixels of one token, G = 8 token grid side of the boards.
"""

import torch
from torch import Tensor

from ..checkpoints.library_tokenizers import LibraryTokenizer
from ..components.vq_model import CosineQuantizer, VQModel
from ..data.pixels import to_uint8

FIELDS = 4  # a side of the board; a field is a block of 2 x 2 tokens
CODES = FIELDS**2 // 2  # shown on one board
BOARDS = 16  # decoded at once, 8 x 8 tokens each


@torch.no_grad()
def code_patches(vq_model: VQModel | LibraryTokenizer, ids: Tensor) -> Tensor:
    """Mean patch (n, 3, f, f) uint8 of every code, as it looks in images.

    An image of one code alone has colors that the code never has in an image: the decoder's
    normalizations take out what all of an image shares. So codes stand in blocks of 2 x 2 on the
    black fields of a chessboard whose white fields are random codes, then the other way round; a
    patch is the mean over the tokens of both blocks.

    Args:
        ids: (n,) codes; of a tokenizer with two codebooks, semantic codes, shown without details.

    Raises:
        ValueError: ids outside of the codebook.
    """
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vq_model.codebook_size:
        raise ValueError(
            f"ids run from {int(ids.min())} to {int(ids.max())}; they must be in "
            f"0..{vq_model.codebook_size - 1}."
        )
    if not len(ids):
        return torch.zeros(0, 3, vq_model.downsample, vq_model.downsample, dtype=torch.uint8)

    # Codes go on boards, the last one filled up with the first code.
    device, cell = vq_model.device, vq_model.downsample
    rest = ids[:1].expand(-len(ids) % CODES)
    groups = torch.cat([ids, rest]).to(device).view(-1, CODES)  # (boards, 8)
    total = torch.zeros(groups.numel(), 3, cell, cell)
    for color in (0, 1):
        # The same random codes are on all boards, so that a second call shows the same.
        fields = torch.arange(FIELDS).view(-1, 1).add(torch.arange(FIELDS)) % 2 == color
        random = torch.Generator().manual_seed(color)
        board = torch.randint(vq_model.codebook_size, (1, FIELDS, FIELDS), generator=random)
        board = board.to(device).repeat(len(groups), 1, 1)
        board[:, fields] = groups
        board = board.repeat_interleave(2, 1).repeat_interleave(2, 2)  # (boards, G, G)

        # Decoded, cut into tokens, averaged over the four tokens of a field.
        for start, part in enumerate(board.split(BOARDS)):
            pixels = _decoded(vq_model, part).float().clamp(-1, 1).cpu()
            cells = pixels.view(-1, 3, FIELDS, 2, cell, FIELDS, 2, cell).mean((3, 6))
            cells = cells.permute(0, 2, 4, 1, 3, 5)[:, fields].flatten(0, 1)
            total[start * BOARDS * CODES :][: len(cells)] += cells
    return to_uint8(total[: len(ids)] / 2)


def _decoded(vq_model: VQModel | LibraryTokenizer, ids: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of ids (B, G, G); of semantic codes alone where there are two books."""
    if vq_model.detail_codebook_size is not None:
        return vq_model.decode_codes(CosineQuantizer.lookup(vq_model.quantize, ids))
    return vq_model.decode(ids)
