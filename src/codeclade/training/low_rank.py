"""Low-rank fine-tuning (LoRA, arXiv 2106.09685) through PEFT: W + (alpha / r) B A in the blocks.

The linear layers of attention and feed-forward get low-rank updates; all other weights are frozen
but for the parts that a recipe names. A finished model has its updates merged into ordinary
weights.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from torch import nn

from ..components.transformer import CodecladeTransformer
from ..data.extras import install_command

# By name: PEFT's "all-linear" would take layers around the blocks too.
TARGETS = r"(layers|head\.blocks)\.\d+\.(attention\.(qkv|out)|feed_forward\.(gate|up|down))"
PARTS = ("prefix", "token_embedding", "head")  # what may be trained whole beside the updates


def check_low_rank(rank: int, init_from: str, others: dict[str, bool]) -> None:
    """Raise a ValueError unless a recipe can be trained with updates of this rank.

    Args:
        init_from: what the run starts from.
        others: settings that train frozen tables, and whether they are on.
    """
    if not init_from:
        raise ValueError(f"lora_rank={rank} needs init_from: random weights must not be frozen.")
    for name, is_on in others.items():
        if is_on:
            raise ValueError(f"lora_rank={rank} does not go with {name}, which trains tables.")
    if find_spec("peft") is None:
        raise ValueError(
            f"lora_rank={rank} needs the package peft, which is not installed: "
            f"{install_command('peft')}."
        )


def add_low_rank(
    model: CodecladeTransformer, rank: int, alpha: float, dropout: float, whole: Sequence[str]
) -> None:
    """Freeze a model and give its blocks updates of rank `rank`, in place.

    Args:
        alpha: the update's scale times the rank; 0: the rank, for a scale of 1.
        dropout: of the update's input.
        whole: of PARTS, trained in full.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha or rank, lora_dropout=dropout, target_modules=TARGETS
    )
    inject_adapter_in_model(config, model)  # freezes all but the updates
    for name in whole:
        for inner, parameter in model.get_submodule(name).named_parameters():
            if "base_layer" not in inner:
                parameter.requires_grad_(True)


def merged(model: nn.Module) -> nn.Module:
    """The model with its updates in ordinary weights, all trainable, in place."""
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config  # what PEFT left behind
    return model.requires_grad_(True)
