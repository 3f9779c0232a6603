"""IAR2's published checkpoints (arXiv 2510.06928): two codebooks and a generator over pairs.

Tokenizer 0485000.pt, generators IAR2-*.pth; the converted models are numerically equal to them.
Both extend LlamaGen's layout.
"""

from typing import Any

from ..components.transformer import CodecladeTransformer
from .adapter import count_layers, shape_of
from .containers import StateDict
from .family import PublishedFamily
from .llamagen import GENERATOR_NAMES as LLAMAGEN_NAMES
from .llamagen import TOKENIZER_NAMES, BlockAdapter, LlamaGenTokenizer

DETAIL = "quantize.embedding_second"  # the second codebook
BLOCK_NAMES = {
    theirs: ours for theirs, ours in LLAMAGEN_NAMES.items() if theirs.startswith("layers.")
}
GENERATOR_NAMES = {
    **BLOCK_NAMES,
    **{
        theirs.replace("layers", "factorized_blocks"): ours.replace("layers", "head.blocks")
        for theirs, ours in BLOCK_NAMES.items()
    },
    "cls_embedding.embedding_table": "prefix.embedding",
    "norm": "head.norm",
    "tok_embeddings1": "token_embedding.semantic",
    "tok_embeddings2": "token_embedding.detail",
    "aggregation_layer.{}": "token_embedding.mix.{}",
    "output1.{}": "head.semantic.{}",
    "output2.{}": "head.detail.{}",
    "mlp1.{}": "head.compress.{}",
    "mlp2.{}": "head.combine.{}",
}
# Of the published evaluation, which adds rejection sampling; that is not here.
SAMPLING = {
    "guidance_scale": 3.0,
    "guidance_schedule": {"name": "attention", "start": 1.75, "weight": 0.05},
}


class Iar2Tokenizer(LlamaGenTokenizer):
    """IAR2's tokenizer: two codebooks, or one after its first stage of training."""

    what = "IAR2 tokenizer"
    names = TOKENIZER_NAMES | {DETAIL: "quantize.detail"}

    def config_from(self, state_dict: StateDict, **given: Any) -> dict[str, Any]:
        """As in the parent class, with the size of the second codebook."""
        details = shape_of(state_dict, DETAIL, 2)[0] if DETAIL in state_dict else None
        return super().config_from(state_dict) | {"detail_codebook_size": details}


class Iar2Generator(BlockAdapter):
    """An IAR2 generator: pairs of a semantic and a detail code."""

    what = "IAR2 generator"
    names = GENERATOR_NAMES
    required = (
        "tok_embeddings1.weight",
        "tok_embeddings2.weight",
        "layers.0.feed_forward.w1.weight",
        "cls_embedding.embedding_table.weight",
    )

    def end_fields(self, state_dict: StateDict) -> dict[str, Any]:
        """Fields of a `CodecladeConfig` of scheme "semantic_detail"."""
        # Sizes come from shapes alone: two token tables for the two codes of a pair, one class
        # table whose last row is the null class, and as many blocks in the head as there are names.
        rows, width = shape_of(state_dict, "cls_embedding.embedding_table.weight", 2)
        return {
            "vocab_size": shape_of(state_dict, "tok_embeddings2.weight", 2)[0],
            "hidden_size": width,
            "scheme": "semantic_detail",
            "coarse_vocab_size": shape_of(state_dict, "tok_embeddings1.weight", 2)[0],
            "num_classes": rows - 1,
            "positions_per_cell": 2,  # both codes of a pair share an angle
            "head_layers": count_layers(state_dict, r"factorized_blocks\.([0-9]+)\."),
        }


class Iar2(PublishedFamily):
    """A two-codebook tokenizer and a generator over pairs."""

    method = "IAR2"
    paper = "with LlamaGen, arXiv 2406.06525"
    license = None
    license_statement = "The IAR2 project names no license: all rights are its authors'."
    tokenizer = Iar2Tokenizer()
    generator = Iar2Generator()

    def sampling(self, transformer: CodecladeTransformer) -> dict[str, Any]:
        return SAMPLING


FAMILY = Iar2()
