"""What generator and refiner promise users of transformers: outputs, labels, tables, compiling."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from builders import REFINERS, SCHEMES, build_parts, build_refiner, build_transformer
from codeclade import CodecladeTransformer, Refiner

KINDS = (*SCHEMES, *REFINERS)


def build(kind: str):
    """A model in eager attention and a whole call for it."""
    generator = torch.Generator().manual_seed(1)
    if kind in REFINERS:
        model = build_refiner(**REFINERS[kind], attn_implementation="eager")
        clusters = torch.randint(12, (2, 16), generator=generator)
        given = {"clusters": clusters, "labels": clusters, "mapping": torch.arange(32) % 12}
        if kind == "MASC":
            return model, given | {"context": torch.randn(2, 16, 32, generator=generator)}
        return model, given | {"class_labels": torch.tensor([1, 2])}
    model = build_parts(kind, attn_implementation="eager")["transformer"]
    pairs = (2,) if kind == "semantic_detail" else ()
    tokens = torch.randint(12, (2, 16, *pairs), generator=generator)
    return model, {
        "input_ids": tokens[:, :-1],
        "class_labels": torch.tensor([1, 2]),
        "labels": tokens,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_attentions_of_all_layers(kind):
    model, given = build(kind)
    output = model(**given, output_hidden_states=True, output_attentions=True)
    # A generator is not given the last token; a refiner has all, and may have no prefix.
    length = 16 if kind in SCHEMES else 16 + model.config.prefix_length
    assert [state.shape for state in output.hidden_states] == [(2, length, 32)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 2, length, length)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, length))
    if kind in SCHEMES:
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuple_holds_what_the_output_holds(kind):
    model, given = build(kind)
    output = model(**given, output_hidden_states=True)
    plain = model(**given, output_hidden_states=True, return_dict=False)
    assert type(plain) is tuple and len(plain) == len(output.to_tuple())
    assert torch.equal(plain[0], output.loss)
    model.config.return_dict = False
    assert type(model(**given)) is tuple


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_may_ask_for_states_and_attentions(kind):
    model, given = build(kind)
    assert model(**given).hidden_states is None and model(**given).attentions is None
    model.config.output_hidden_states = model.config.output_attentions = True
    assert len(model(**given).hidden_states) == 3 and len(model(**given).attentions) == 2


def test_fused_attention_has_no_probabilities_to_give():
    model = build_transformer()
    output = model(torch.tensor([[1]]), torch.tensor([1]), output_attentions=True)
    assert model.config._attn_implementation == "sdpa" and output.attentions is None


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_minus_one_hundred_count_for_nothing(kind):
    model, given = build(kind)
    labels = given["labels"].clone()
    labels[:, 3:] = -100
    loss = model(**given | {"labels": labels}).loss
    short = dict(given, labels=given["labels"][:, :3])
    if kind in REFINERS:
        logits = model(**given).logits[:, :3]
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), given["labels"][:, :3].flatten()
        )
    else:
        expected = model(**short | {"input_ids": given["input_ids"][:, :2]}).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_tokens_are_found_and_keep_their_size(kind):
    model, _ = build(kind)
    head = model.get_output_embeddings().weight
    assert head.shape[0] == getattr(model.config, "vocab_size", 32)
    assert model.get_input_embeddings().weight.shape[1] == head.shape[1] // (
        2 if kind == "semantic_detail" else 1
    )
    other = torch.nn.Embedding(*model.get_input_embeddings().weight.shape)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    new_head = torch.nn.Linear(head.shape[1], head.shape[0], bias=False)
    model.set_output_embeddings(new_head)
    assert model.get_output_embeddings() is new_head
    with pytest.raises(ValueError, match="stay as many as they are"):
        model.resize_token_embeddings(40)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_made_without_values_is_initialized_like_any_other(kind):
    config = build(kind)[0].config
    kind_of_model = Refiner if kind in REFINERS else CodecladeTransformer
    with torch.device("meta"):
        empty = kind_of_model(config)
    empty = empty.to_empty(device="cpu")
    for parameter in [*empty.parameters(), *empty.buffers()]:
        parameter.data.fill_(77)
    for module in empty.modules():
        for value in [*module.parameters(False), *module.buffers(False)]:
            value._is_hf_initialized = False
        module._is_hf_initialized = False
    empty.init_weights()
    for name, value in empty.state_dict().items():
        assert not (value == 77).any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_gathers_logits_alone(kind):
    model, given = build(kind)
    output = model(**given, output_hidden_states=True, output_attentions=True)
    kept = set(output) - set(model.config.keys_to_ignore_at_inference) - {"loss"}
    assert kept and all(name.endswith("logits") for name in kept)


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(scheme, marks=() if scheme == "cluster_token" else pytest.mark.slow)
        for scheme in SCHEMES
    ],
)  # each compiles for seconds
def test_steps_with_a_static_cache_compile_to_one_graph_each(scheme):
    model = build_parts(scheme)["transformer"]
    pairs = (2,) if scheme == "semantic_detail" else ()
    tokens = torch.randint(12, (2, 16, *pairs), generator=torch.Generator().manual_seed(2))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    states = []
    with torch.no_grad():
        for run in (model, compiled):
            cache = StaticCache(model.config, max_cache_len=17)
            run(class_labels=torch.tensor([1, 2]), past_key_values=cache, return_logits=False)
            for step in range(6):
                output = run(tokens[:, step : step + 1], past_key_values=cache, return_logits=False)
            states.append(output.last_hidden_state)
    torch.testing.assert_close(*states)
    assert counter.frame_count == 2  # the prefix, and a token


def test_blocks_compile_alone():
    model = build_transformer()
    given = torch.tensor([[1, 2]]), torch.tensor([1])
    expected = model(*given).logits
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile_repeated_blocks(backend=counter, fullgraph=True)
    torch.testing.assert_close(model(*given).logits, expected)
    assert counter.frame_count == 1  # the second block is the same code
