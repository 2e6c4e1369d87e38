"""Chosen tokens follow the distribution that was asked for, and depend on seed and index only."""

import pytest
import torch

from capanode.engines.sampling import SamplingParameters, choose_tokens, uniform_draw

DRAWS = 4000


def frequencies(logits: list[float], temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    row = torch.tensor([logits]).expand(DRAWS, -1).contiguous()
    wanted = [SamplingParameters(temperature, top_p, top_k, seed) for seed in range(DRAWS)]
    tokens = torch.tensor(choose_tokens(row, wanted, [7] * DRAWS))
    return torch.bincount(tokens, minlength=len(logits)) / DRAWS


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # Five standard deviations: the seeds are fixed, so this passes always or never.
    deviation = (expected * (1 - expected) / DRAWS).sqrt() * 5
    assert ((found - expected).abs() <= deviation + 1e-9).all(), (found, expected)


LOGITS = [1.0, 2.0, 3.0, 4.0, 0.0, -2.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = (torch.tensor(LOGITS) / temperature).softmax(-1)
    assert_close(frequencies(LOGITS, temperature, 1.0, 0), expected)


def test_top_k_keeps_the_likeliest_and_their_proportions() -> None:
    kept = torch.tensor(LOGITS).softmax(-1)
    kept[[0, 1, 4, 5]] = 0
    assert_close(frequencies(LOGITS, 1.0, 1.0, 2), kept / kept.sum())


def test_top_p_keeps_the_nucleus() -> None:
    kept = torch.tensor(LOGITS).softmax(-1)
    kept[[0, 4, 5]] = 0  # 0.64 + 0.23 < 0.9 <= 0.64 + 0.23 + 0.09
    assert_close(frequencies(LOGITS, 1.0, 0.9, 0), kept / kept.sum())


def test_top_p_applies_to_what_top_k_leaves() -> None:
    kept = torch.tensor(LOGITS).softmax(-1)
    kept[[0, 1, 4, 5]] = 0  # 0.64 of 0.95 is two thirds: the second is needed for 0.7
    assert_close(frequencies(LOGITS, 1.0, 0.7, 3), kept / kept.sum())


def test_a_nucleus_wider_than_the_candidates_is_drawn_exactly() -> None:
    flat = [0.01 * (index % 7) for index in range(300)]
    probabilities = torch.tensor(flat).softmax(-1)
    order = probabilities.sort(descending=True, stable=True)
    before = order.values.cumsum(-1) - order.values
    # Rejection takes all tokens as likely as the last of the nucleus: ties have no order.
    least = order.values[before < 0.5][-1]
    kept = probabilities.masked_fill(probabilities < least, 0)
    assert_close(frequencies(flat, 1.0, 0.5, 0), kept / kept.sum())


def test_a_wide_top_k_draws_only_among_its_tokens() -> None:
    logits = [float(index) / 100 for index in range(400)]
    found = frequencies(logits, 1.0, 1.0, 100)
    assert not found[:300].any()
    assert (found[300:] > 0).sum() > 90


def test_zero_temperature_and_top_1_take_the_first_of_the_likeliest() -> None:
    logits = torch.zeros(2, 384)
    logits[:, [130, 250, 300]] = 5.0
    wanted = [SamplingParameters(0.0, 1.0, 0, 1), SamplingParameters(1.5, 1.0, 1, 1)]
    assert choose_tokens(logits, wanted, [0, 0]) == [130, 130]
    assert choose_tokens(logits[:, :333], wanted, [0, 0]) == [130, 130]


def test_a_very_low_temperature_does_not_overflow() -> None:
    assert frequencies(LOGITS, 1e-6, 1.0, 0)[3] == 1
    assert frequencies(LOGITS, 1e-6, 0.5, 0)[3] == 1


def test_a_row_draws_alike_in_any_company() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(12, 512, generator=generator) * 3).bfloat16()
    kinds = [
        (0.0, 1.0, 0),
        (1.0, 1.0, 0),
        (0.8, 0.9, 0),
        (1.2, 0.95, 40),
        (1.0, 1.0, 200),
        (2.0, 0.7, 0),
    ]
    wanted = [SamplingParameters(*kinds[row % 6], seed=row) for row in range(12)]
    together = choose_tokens(logits, wanted, list(range(12)))
    for row in range(12):
        assert choose_tokens(logits[row : row + 1], [wanted[row]], [row]) == [together[row]]


def test_draws_are_spread_evenly_and_differ_by_seed_and_index() -> None:
    draws = torch.tensor(
        [uniform_draw(seed, index) for seed in range(40) for index in range(50)],
        dtype=torch.float64,
    )
    assert len(set(draws.tolist())) == len(draws)
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert torch.histc(draws, 10, 0, 1).sub(200).abs().max() < 60


def test_draws_never_change_between_versions() -> None:
    # A seed is a promise to the client, and answers continue on nodes of other versions.
    assert uniform_draw(42, 0) == pytest.approx(DRAW_42_0, abs=0)
    assert uniform_draw(2**63 - 1, 1_000_000) == pytest.approx(DRAW_LARGE, abs=0)


DRAW_42_0 = 0.3131248909824863
DRAW_LARGE = 0.7444835581696195
