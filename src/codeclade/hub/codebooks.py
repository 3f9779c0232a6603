"""Moved to codeclade.checkpoints.codebooks."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "load_codebook": "checkpoints.codebooks.load_codebook",
        "load_tokenizer": "checkpoints.codebooks.load_tokenizer",
    },
)
