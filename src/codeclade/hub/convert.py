"""Moved to codeclade.checkpoints."""

from ..deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "load_checkpoint": "checkpoints.containers.load_checkpoint",
        "load_mapping": "checkpoints.containers.load_mapping",
        "vq_model_from_llamagen": "checkpoints.llamagen.FAMILY.tokenizer.build",
        "vq_model_to_llamagen": "checkpoints.llamagen.FAMILY.tokenizer.published_weights",
        "vq_model_from_iar2": "checkpoints.iar2.FAMILY.tokenizer.build",
        "vq_model_to_iar2": "checkpoints.iar2.FAMILY.tokenizer.published_weights",
        "transformer_from_llamagen": "checkpoints.llamagen.FAMILY.generator.build",
        "transformer_to_llamagen": "checkpoints.llamagen.FAMILY.generator.published_weights",
        "transformer_from_iar2": "checkpoints.iar2.FAMILY.generator.build",
        "transformer_to_iar2": "checkpoints.iar2.FAMILY.generator.published_weights",
        "HEADS": "checkpoints.llamagen.HEADS",
        "GPT_NAMES": "checkpoints.llamagen.GENERATOR_NAMES",
        "VQ_NAMES": "checkpoints.llamagen.TOKENIZER_NAMES",
        "StateDict": "checkpoints.containers.StateDict",
    },
)
