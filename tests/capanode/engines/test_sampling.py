"""Chosen tokens follow the distribution that was asked for, and depend on seed and index only."""

import hashlib
import random

import pytest
import torch
from torch import Tensor

from capanode.engines.noise import RowNoise, gumbel, rough_gumbel
from capanode.engines.sampling import SamplingParameters, choose_tokens
from tests.protocol.page import rows_under

DRAWS = 4000


def frequencies(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float = 0.0
) -> Tensor:
    row = torch.tensor([logits]).expand(DRAWS, -1).contiguous()
    wanted = [SamplingParameters(temperature, top_p, top_k, seed, min_p) for seed in range(DRAWS)]
    tokens = torch.tensor(choose_tokens(row, wanted, [7] * DRAWS))
    return torch.bincount(tokens, minlength=len(logits)) / DRAWS


def assert_close(found: Tensor, expected: Tensor) -> None:
    # Five standard deviations: the seeds are fixed, so this passes always or never.
    deviation = (expected * (1 - expected) / DRAWS).sqrt() * 5
    assert ((found - expected).abs() <= deviation + 1e-9).all(), (found, expected)


LOGITS = [1.0, 2.0, 3.0, 4.0, 0.0, -2.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = (torch.tensor(LOGITS) / temperature).softmax(-1)
    assert_close(frequencies(LOGITS, temperature, 1.0, 0), expected)


def test_draws_from_many_tokens_follow_the_softmax() -> None:
    logits = [3.0 * (index * 37 % 101) / 100 for index in range(1_000)]
    expected = torch.tensor(logits).softmax(-1).view(10, -1).sum(-1)
    assert_close(frequencies(logits, 1.0, 1.0, 0).view(10, -1).sum(-1), expected)


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


def test_min_p_leaves_out_what_is_far_from_the_likeliest() -> None:
    kept = torch.tensor(LOGITS).softmax(-1)
    kept[[0, 1, 4, 5]] = 0  # e^-1 = 0.37 stays, e^-2 = 0.14 does not
    assert_close(frequencies(LOGITS, 1.0, 1.0, 0, min_p=0.2), kept / kept.sum())


def test_tokens_that_are_as_likely_as_the_last_one_stay_too() -> None:
    equal = [2.0, 1.0, 1.0, 1.0, 0.0]
    kept = torch.tensor(equal).softmax(-1)
    kept[4] = 0
    assert_close(frequencies(equal, 1.0, 1.0, 2), kept / kept.sum())
    assert_close(frequencies(equal, 1.0, 0.5, 0), kept / kept.sum())


def kept_by_definition(logits: Tensor, wanted: SamplingParameters) -> Tensor:
    """What the filters leave, as the page defines it."""
    scaled = logits.float() / wanted.temperature
    weights = (scaled - scaled.max()).exp().double()
    kept = torch.ones_like(scaled, dtype=torch.bool)
    if wanted.top_k:
        kept = torch.tensor([int((scaled > own).sum()) < wanted.top_k for own in scaled])
    left = weights * kept
    likelier = torch.tensor([float(left[scaled > own].sum()) for own in scaled])
    if wanted.top_p < 1:
        kept &= likelier < wanted.top_p * left.sum()
    return kept & (weights >= wanted.min_p)


def choice_by_definition(logits: Tensor, wanted: SamplingParameters, index: int) -> int:
    hashes = RowNoise([wanted.seed], [index], logits.device).all_hashes(len(logits))[0].tolist()
    scaled = (logits.float() / wanted.temperature).tolist()
    kept = kept_by_definition(logits, wanted).tolist()
    sums = [
        (value + gumbel(noise), -token)
        for token, (value, noise, stays) in enumerate(zip(scaled, hashes, kept, strict=True))
        if stays
    ]
    return -max(sums)[1]


@pytest.mark.parametrize("vocab", [100, 384, 3_001])
@pytest.mark.parametrize(
    "filters", [(1.0, 0, 0.0), (0.9, 0, 0.0), (0.5, 70, 0.0), (1.0, 100, 0.0), (0.99, 0, 0.05)]
)
def test_a_choice_is_the_greatest_sum_of_what_the_filters_leave(
    vocab: int, filters: tuple[float, int, float]
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    top_p, top_k, min_p = filters
    for index, (spread, temperature) in enumerate(((0.05, 1.0), (1.0, 0.7), (4.0, 2.0))):
        logits = (torch.randn(vocab, generator=generator) * spread).bfloat16()
        wanted = SamplingParameters(temperature, top_p, top_k, 11 * index, min_p)
        expected = choice_by_definition(logits, wanted, index)
        assert choose_tokens(logits[None], [wanted], [index]) == [expected]


def test_a_forbidden_token_is_never_chosen() -> None:
    logits = torch.full((64, 600), -torch.inf)
    logits[:, [7, 599]] = 1.0
    kinds = ((1.0, 1.0, 0), (1.0, 0.9, 0), (1.0, 1.0, 5), (0.0, 1.0, 0))
    wanted = [SamplingParameters(*kinds[row % 4], seed=row) for row in range(64)]
    assert set(choose_tokens(logits, wanted, [0] * 64)) == {7, 599}


def test_zero_temperature_and_top_1_take_the_first_of_the_likeliest() -> None:
    logits = torch.zeros(2, 384)
    logits[:, [130, 250, 300]] = 5.0
    wanted = [SamplingParameters(0.0, 1.0, 0, 1), SamplingParameters(1.5, 1.0, 1, 1)]
    assert choose_tokens(logits, wanted, [0, 0]) == [130, 130]
    assert choose_tokens(logits[:, :333], wanted, [0, 0]) == [130, 130]


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 2e-5])
def test_a_very_low_temperature_does_not_overflow(temperature: float) -> None:
    assert frequencies(LOGITS, temperature, 1.0, 0)[3] == 1
    assert frequencies(LOGITS, temperature, 0.5, 0)[3] == 1


def test_a_row_draws_alike_in_any_company() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(14, 512, generator=generator) * 3).bfloat16()
    kinds = [
        (0.0, 1.0, 0, 0.0),
        (1.0, 1.0, 0, 0.0),
        (0.8, 0.9, 0, 0.0),
        (1.2, 0.95, 40, 0.0),
        (1.0, 1.0, 200, 0.0),
        (2.0, 0.7, 0, 0.0),
        (2.0, 0.999, 0, 0.01),
    ]
    wanted = [SamplingParameters(*kinds[row % 7][:3], row, kinds[row % 7][3]) for row in range(14)]
    together = choose_tokens(logits, wanted, list(range(14)))
    for row in range(14):
        assert choose_tokens(logits[row : row + 1], [wanted[row]], [row]) == [together[row]]


def test_noise_has_the_mean_and_spread_of_a_gumbel_variable() -> None:
    noise = RowNoise(list(range(40)), [3] * 40, torch.device("cpu"))
    values = rough_gumbel(noise.all_hashes(2_048)).double()
    assert abs(values.mean() - 0.5772) < 0.02
    assert abs(values.var() - 1.6449) < 0.05
    # Tokens of one draw have nothing to do with each other, nor draws of one token.
    for other in (values.roll(1, 1), values.roll(1, 0)):
        assert abs(torch.corrcoef(torch.stack([values.flatten(), other.flatten()]))[0, 1]) < 0.02


def test_rough_noise_is_close_enough_to_prune_with() -> None:
    hashes = torch.tensor([[-(2**31), -(2**31) + 7, -(2**31) + 90_000, -12, 5, 2**30]])
    exact = torch.tensor([[gumbel(number) for number in hashes[0].tolist()]])
    assert ((rough_gumbel(hashes) - exact).abs() < 5e-4).all()


def test_noise_never_changes_between_versions() -> None:
    """The page's vectors: a seed is a promise, and answers continue on other nodes."""
    rows = rows_under("seed", "place", "token", "hash", "noise")
    assert len(rows) >= 6
    for seed, place, token, hash_text, noise_text in rows:
        noise = RowNoise([int(seed)], [int(place)], torch.device("cpu"))
        found = int(noise.hashes(torch.tensor([[int(token)]]), int(token) + 1))
        assert f"{found + 2**31:08x}" == hash_text
        assert gumbel(found) == pytest.approx(float(noise_text), abs=5e-7)


def test_the_noise_follows_the_page_step_by_step() -> None:
    """The specification in plain integers, as another implementation would write it."""
    rng = random.Random(4)
    for _ in range(200):
        seed, place, token = rng.randrange(2**63), rng.randrange(2**20), rng.randrange(2**18)
        noise = RowNoise([seed], [place], torch.device("cpu"))
        assert int(noise.hashes(torch.tensor([[token]]), 2**18)) + 2**31 == plain_hash(
            seed, place, token
        )


def plain_hash(seed: int, place: int, token: int) -> int:
    key = hashlib.sha256(b"capa/1/gumbel\0" + seed.to_bytes(8, "big") + place.to_bytes(8, "big"))
    first = int.from_bytes(key.digest()[:4], "big")
    second = int.from_bytes(key.digest()[4:8], "big") | 1
    x = token ^ (token >> 16)
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    x ^= x >> 16
    x = (x ^ first) * second % 2**32
    x ^= x >> 15
    x = x * 0x2C1B3C6D % 2**32
    return (x + 2**31) % 2**32
