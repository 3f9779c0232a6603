"""Sampling functions against naive references and by their distributions."""

import pytest
import torch
from scipy.stats import chisquare

from codeclade.components.sampling import (
    draw,
    filter_top_k,
    filter_top_p,
    guide,
    gumbel_noise,
    image_seeds,
    image_uniforms,
    noise_seeds,
    probabilities,
    sample,
    sample_with_noise,
)

LARGEST = 1 - 2**-24  # largest number torch.rand gives in float32


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(rows: int = 50, vocabulary: int = 23) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=generator(0))


def kept(filtered: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in filtered]


def naive_top_p(row: torch.Tensor, top_p: float) -> set[int]:
    probs = row.double().softmax(-1)
    chosen, mass = set(), 0.0
    for index in probs.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        chosen.add(index)
        mass += probs[index].item()
    return chosen


def test_guide_is_the_classifier_free_formula():
    conditional, unconditional = logits(2), logits(2).flip(1)
    expected = unconditional + 2.5 * (conditional - unconditional)
    assert torch.equal(guide(conditional, unconditional, 2.5), expected)
    assert torch.equal(guide(conditional, unconditional, 0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 1), conditional)
    scales = torch.tensor([[0.0], [2.5]])
    by_row = guide(conditional, unconditional, scales)
    assert torch.equal(by_row, torch.stack([unconditional[0], expected[1]]))


@pytest.mark.parametrize("top_k", [1, 2, 7, 22, 23, 40])
def test_top_k_keeps_the_k_largest(top_k):
    rows = logits()
    filtered = filter_top_k(rows, top_k)
    expected = [set(row.argsort(descending=True)[:top_k].tolist()) for row in rows]
    assert kept(filtered) == expected
    assert torch.equal(filtered[filtered.isfinite()], rows[filtered.isfinite()])


def test_top_k_zero_keeps_all_and_ties_stay():
    assert torch.equal(filter_top_k(logits(), 0), logits())
    assert kept(filter_top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), 2)) == [{1, 2, 3}]


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_the_mass(top_p):
    rows = logits()
    assert kept(filter_top_p(rows, top_p)) == [naive_top_p(row, top_p) for row in rows]


def test_top_p_one_keeps_all():
    assert torch.equal(filter_top_p(logits(), 1.0), logits())


def test_filters_act_in_order_temperature_top_k_top_p():
    rows, temperature, top_k, top_p = logits(), 1.7, 6, 0.8
    probs = probabilities(rows, temperature, top_k, top_p)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(rows)))
    for row, result in zip(rows / temperature, probs, strict=True):
        few = row.masked_fill(row < row.sort(descending=True).values[top_k - 1], -torch.inf)
        chosen = naive_top_p(few, top_p)
        assert set(result.nonzero().flatten().tolist()) == chosen
        index = torch.tensor(sorted(chosen))
        torch.testing.assert_close(result[index], row[index].softmax(-1))


def test_draw_follows_the_probabilities():
    probs = torch.tensor([0.05, 0.0, 0.4, 0.25, 0.3])
    count = 40_000
    uniforms = torch.rand(count, generator=generator(1))
    counts = draw(probs.expand(count, -1), uniforms).bincount(minlength=5)
    assert counts[1] == 0
    positive = probs > 0
    assert chisquare(counts[positive], (probs * count)[positive].double()).pvalue > 1e-3


def test_draw_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.25, 0.5, 0.25]]).expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, LARGEST])
    assert draw(probs, uniforms).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("uniform", [0.0, LARGEST])
@pytest.mark.parametrize("seed", range(5))
def test_draw_never_takes_an_entry_of_probability_zero(uniform, seed):
    probs = torch.rand(200, 301, generator=generator(seed))
    probs[torch.rand(probs.shape, generator=generator(seed + 100)) < 0.7] = 0
    probs[:, [0, -1]] = 0
    probs[:, 5] += 1e-6
    chosen = draw(probs / probs.sum(-1, keepdim=True), torch.full((200,), uniform))
    assert (probs.gather(1, chosen[:, None]) > 0).all()


def test_draw_takes_unnormalized_half_precision_rows():
    probs = torch.tensor([[2.0, 0.0, 6.0]], dtype=torch.bfloat16).expand(4, -1)
    assert draw(probs, torch.tensor([0.0, 0.249, 0.251, LARGEST])).tolist() == [0, 0, 2, 2]


def test_temperature_zero_is_arg_max():
    uniforms = torch.full((50,), 0.999)
    assert torch.equal(sample(logits(), uniforms, temperature=0), logits().argmax(-1))


def test_temperature_sharpens_and_flattens():
    row = torch.tensor([[0.0, 1.0, 2.0]])
    for temperature in (0.5, 1.0, 4.0):
        result = probabilities(row, temperature, 0, 1.0)
        torch.testing.assert_close(result, (row / temperature).softmax(-1))


def test_sample_draws_from_the_filtered_distribution():
    row = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.5])
    count = 40_000
    uniforms = torch.rand(count, generator=generator(2))
    tokens = sample(row.expand(count, -1), uniforms, temperature=2.0, top_k=3)
    counts = tokens.bincount(minlength=5)
    assert counts[:2].sum() == 0
    expected = (row[2:].double() / 2).softmax(-1) * count
    assert chisquare(counts[2:], expected).pvalue > 1e-3


def test_sample_of_half_precision_logits_computes_in_float32():
    half = logits().to(torch.bfloat16)
    uniforms = torch.rand(50, generator=generator(3))
    assert torch.equal(sample(half, uniforms, top_k=9), sample(half.float(), uniforms, top_k=9))


def test_uniforms_of_an_image_do_not_depend_on_its_batch():
    shape = (2, 9)
    batch = image_uniforms(3, shape, generator(5))
    assert batch.shape == (3, *shape)
    assert torch.equal(image_uniforms(1, shape, generator(5))[0], batch[0])
    several = image_uniforms(3, shape, [generator(seed) for seed in (4, 5, 6)])
    assert torch.equal(several[1], batch[0])
    assert torch.equal(several[2], image_uniforms(1, shape, generator(6))[0])


def test_uniforms_differ_between_images_and_lie_in_the_unit_interval():
    numbers = image_uniforms(64, (200,), generator(7))
    assert len(numbers.unique(dim=0)) == 64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert chisquare(torch.histc(numbers, 20, 0, 1)).pvalue > 1e-3


def test_uniforms_without_generator_follow_the_global_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(image_uniforms(2, (4,), None))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_scrambled_numbers_are_those_of_splitmix64():
    """The reference is the published algorithm in Python's unbounded integers."""
    mask, state, expected = 2**64 - 1, 1234567, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(z ^ (z >> 31))
    found = noise_seeds([1234567], 1, 5).flatten().tolist()
    assert [one & mask for one in found] == expected
    assert expected[0] == 6457827717110365317  # as Vigna's splitmix64.c prints for this seed


def test_noise_is_gumbel_and_without_correlation():
    noise = gumbel_noise(noise_seeds([5], 1, 500)[0, 0], 400).double()  # (500, 400)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)
    counts = torch.histc((-(-noise).exp()).exp(), 40, 0, 1)  # its distribution function is uniform
    assert chisquare(counts).pvalue > 1e-3
    for other in (noise.roll(1, 0), noise.roll(1, 1), noise.roll((1, -1), (0, 1))):
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation.item()) < 0.01


def test_noise_of_an_entry_depends_on_its_seed_and_number_alone():
    seeds = noise_seeds([3, 4], 2, 9)
    assert torch.equal(noise_seeds([4], 2, 9)[0], seeds[1])
    assert len(seeds.unique()) == seeds.numel()
    assert torch.equal(gumbel_noise(seeds, 50)[..., :20], gumbel_noise(seeds, 20))
    assert gumbel_noise(seeds, 50).isfinite().all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (1.6, 0, 1.0), (1.0, 4, 1.0), (0.8, 5, 0.9)]
)
def test_noise_samples_from_the_filtered_distribution(temperature, top_k, top_p):
    row = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.5, -1.0, 1.7])
    count = 40_000
    seeds = noise_seeds([11], 1, count)[0, 0]
    filters = temperature, top_k, top_p
    counts = sample_with_noise(row.expand(count, -1), seeds, *filters).bincount(minlength=7)
    expected = probabilities(row.unsqueeze(0), *filters)[0].double() * count
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    expected = expected[kept] / expected[kept].sum() * count
    assert chisquare(counts[kept], expected).pvalue > 1e-3


def test_noise_leaves_the_arg_max_alone_at_temperature_zero():
    seeds = noise_seeds([1], 1, 50)[0, 0]
    assert torch.equal(sample_with_noise(logits(), seeds, temperature=0), logits().argmax(-1))


def test_seeds_of_images_are_one_draw_each():
    assert image_seeds(3, generator(5))[:2] == image_seeds(2, generator(5))
    assert len(set(image_seeds(100, generator(5)))) == 100
