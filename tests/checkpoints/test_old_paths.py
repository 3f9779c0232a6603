"""Names of the version before stay importable for one version, with a warning."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

from builders import build_transformer, build_vq
from codeclade import hub

MODULES = ("convert", "dcpe", "codebooks", "cluster_maps", "published")


def names(module: str) -> list[str]:
    """Public names that an old module still gives."""
    tree = ast.parse((Path(hub.__path__[0]) / f"{module}.py").read_text())
    (places,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    return [key.value for key in places.keys]


@pytest.mark.parametrize("module", MODULES)
def test_every_old_name_leads_somewhere_and_warns(module):
    old = importlib.import_module(f"codeclade.hub.{module}")
    assert names(module)
    for name in names(module):
        with pytest.warns(DeprecationWarning, match=rf"hub\.{module}\.{name} is deprecated; use"):
            assert getattr(old, name) is not None
    with pytest.raises(AttributeError):
        _ = old.nothing


def test_the_old_functions_do_what_they_did():
    with pytest.warns(DeprecationWarning):
        from codeclade.hub.convert import (
            transformer_from_llamagen,
            transformer_to_llamagen,
            vq_model_from_llamagen,
            vq_model_to_llamagen,
        )
    model = build_transformer()
    again = transformer_from_llamagen(
        transformer_to_llamagen(model), grid_size=4, num_attention_heads=2
    )
    assert torch.equal(again.head.weight, model.head.weight)
    tokenizer = build_vq(block_out_channels=(32, 32), latent_channels=32, norm_num_groups=32)
    again = vq_model_from_llamagen(vq_model_to_llamagen(tokenizer))
    assert torch.equal(again.codebook, tokenizer.codebook)
