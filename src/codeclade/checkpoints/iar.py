"""IAR's published checkpoints (arXiv 2501.00880): LlamaGen's layout on a re-ordered codebook.

IAR permutes the tokenizer's codebook so that neighboring ids are near each other and blocks of 128
ids are clusters. Published are a re-ordered tokenizer, or the permutation alone; the converted
models are numerically equal to the files.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..components.cluster_map import ClusterMap
from ..components.vq_model import VQModel
from .containers import load_mapping
from .family import PublishedFamily
from .llamagen import GUIDANCE as LLAMAGEN_GUIDANCE
from .llamagen import LlamaGenGenerator, LlamaGenTokenizer

BLOCK = 128  # ids of one cluster
GUIDANCE = LLAMAGEN_GUIDANCE | {768: 2.25}  # of the published evaluations, by width
COHERENCE = 0.5  # mean cosine of neighboring rows; IAR's order has 0.86 and more, others ~0


class IarGenerator(LlamaGenGenerator):
    """LlamaGen's layout over re-ordered ids."""

    what = "IAR generator"


class Iar(PublishedFamily):
    """A generator with the tokenizer whose codebook is in IAR's order, and IAR's clusters."""

    method = "IAR"
    paper = "with LlamaGen, arXiv 2406.06525"
    license = None
    license_statement = "The IAR project names no license: all rights are its authors'."
    tokenizer = LlamaGenTokenizer()
    generator = IarGenerator()
    guidance = GUIDANCE

    def build_tokenizer(self, vq: str | Path, **files: str | Path | None) -> VQModel:
        """A tokenizer in IAR's order: as it is in the file, or permuted by `mapping`.

        Raises:
            ValueError: a codebook that is not in IAR's order, or would be permuted twice.
        """
        # Names and shapes cannot tell a re-ordered codebook from LlamaGen's, and with the wrong one
        # every image is noise; the order shows in how alike neighboring rows are.
        vq_model, mapping = super().build_tokenizer(vq), files.get("mapping")
        codebook = vq_model.codebook.detach()
        if mapping is not None:
            new_codebook = permuted(codebook, load_mapping(mapping), mapping)
            if coherence(codebook) >= COHERENCE:
                raise ValueError(f"{vq} is in IAR's order already; leave --mapping out.")
            vq_model.quantize.embedding.weight = torch.nn.Parameter(new_codebook)
        if coherence(vq_model.codebook.detach()) < COHERENCE:
            which = f"permuted by {mapping}" if mapping else "as it is"
            raise ValueError(
                f"the codebook of {vq}, {which}, is not in IAR's order; give the re-ordered "
                "tokenizer, or LlamaGen's with --mapping."
            )
        return vq_model

    def build_cluster_map(self, vq_model: VQModel, **files: str | Path | None) -> ClusterMap:
        """Blocks of 128 consecutive ids."""
        blocks = torch.arange(vq_model.codebook_size) // BLOCK
        return ClusterMap.from_labels(blocks, vq_model.codebook, method="iar")


def coherence(codebook: Tensor) -> float:
    """Mean cosine of neighboring rows (N, d): near 1 in IAR's nearest-neighbor order."""
    unit = torch.nn.functional.normalize(codebook.float(), dim=-1)
    return (unit[1:] * unit[:-1]).sum(-1).mean().item()


def permuted(codebook: Tensor, mapping: Tensor, path: str | Path) -> Tensor:
    """Row `mapping[i]` of the result is row i of `codebook` (N, d).

    Raises:
        ValueError: a mapping that is no permutation; `path` names it.
    """
    # Twice the same target would leave another row unwritten.
    if not torch.equal(mapping.sort().values, torch.arange(len(codebook))):
        raise ValueError(f"{path} is no permutation of the {len(codebook)} codes of the tokenizer.")
    result = torch.empty_like(codebook)
    result[mapping] = codebook
    return result


FAMILY = Iar()
