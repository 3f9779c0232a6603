"""transformers' common model tests on the generator of every scheme and on the refiners.

See run.py.
"""

import unittest
from types import SimpleNamespace

import torch
from tests.test_modeling_common import ModelTesterMixin
from transformers.testing_utils import torch_device

from builders import COARSE, DETAILS, REFINERS
from codeclade import CodecladeConfig, CodecladeTransformer, Refiner, RefinerConfig

SHAPE = {
    "grid_size": 4,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


UNLIKE_TEXT = {
    "semantic_detail": "it takes the last axis of the tokens for the sequence, here a pair",
    "CTF": "it takes the mapping, which is one for the whole batch, for a batch",
    "MASC": "it takes the mapping, which is one for the whole batch, for a batch",
}


class Models(ModelTesterMixin):
    """What generator and refiners share: a batch of two, a prefix and fifteen tokens."""

    test_resize_embeddings = False  # tokens are the tokenizer's codes; resizing is refused
    all_model_classes = (CodecladeTransformer,)
    kind = "token"

    def test_model_weights_reload_no_missing_tied_weights(self):
        self.skipTest("it loads files without weights, which are refused here")

    def setUp(self):
        # The test makes its own batch and mask, from the shape of the main input alone.
        if "eager_matches_sdpa" in self._testMethodName and self.kind in UNLIKE_TEXT:
            self.skipTest(UNLIKE_TEXT[self.kind])
        self.model_tester = SimpleNamespace(
            prepare_config_and_inputs_for_common=lambda: (self.config(), self.inputs()),
            batch_size=2,
            seq_length=self.seq_length,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_size=32,
            is_training=True,
        )

    seq_length = 16

    def config(self):
        vocabulary = {"cluster": 12, "semantic_detail": DETAILS}.get(self.kind, 32)
        coarse = COARSE.get(self.kind)
        sizes = {"vocab_size": vocabulary, "coarse_vocab_size": coarse}
        return CodecladeConfig(scheme=self.kind, **sizes, **SHAPE)

    def tokens(self, length: int):
        pairs = (2,) if self.kind == "semantic_detail" else ()
        return torch.arange(2 * length * (2 if pairs else 1)).view(2, length, *pairs) % 12

    def inputs(self):
        given = {"input_ids": self.tokens(15), "class_labels": torch.tensor([1, 2])}
        return {name: value.to(torch_device) for name, value in given.items()}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        given = super()._prepare_for_class(inputs_dict, model_class)
        labels = {"labels": self.tokens(16).to(torch_device)} if return_labels else {}
        return given | labels


class TokenTest(Models, unittest.TestCase):
    pass


class ClusterTest(Models, unittest.TestCase):
    kind = "cluster"


class ClusterTokenTest(Models, unittest.TestCase):
    kind = "cluster_token"


class SemanticDetailTest(Models, unittest.TestCase):
    kind = "semantic_detail"


class Refiners(Models):
    all_model_classes = (Refiner,)
    seq_length = 17
    additional_model_inputs = ["class_labels"]  # noqa: RUF012

    def test_batching_equivalence(self):
        if REFINERS[self.kind]:
            self.skipTest("it takes the mapping, which is one for the whole batch, for a batch")
        super().test_batching_equivalence()

    def config(self):
        return RefinerConfig(codebook_size=32, num_clusters=12, **(SHAPE | REFINERS[self.kind]))

    def inputs(self):
        given = {"clusters": self.tokens(16), "class_labels": torch.tensor([1, 2])}
        if REFINERS[self.kind]:  # those that keep to members
            given["mapping"] = torch.arange(32) % 12
        return {name: value.to(torch_device) for name, value in given.items()}


class DCPETest(Refiners, unittest.TestCase):
    kind = "DCPE"


class CTFTest(Refiners, unittest.TestCase):
    kind = "CTF"


class MASCTest(Refiners, unittest.TestCase):
    kind = "MASC"
    seq_length = 16  # no class, so no prefix

    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        context = torch.randn(2, 16, 32, generator=generator).to(torch_device)
        return {**super().inputs(), "context": context}
