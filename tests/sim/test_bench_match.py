"""The matching benchmark measures what it says, at a size that takes no time."""

import random

import pytest

from coordinator.market.matching import match
from sim.bench import match as bench


def test_it_reports_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_DECISIONS", {1_000: 60, 2_000: 20})
    monkeypatch.setattr(bench, "_OFFERS_TAKEN", 10)
    figures = bench.run()
    assert set(figures) == {
        "p50_us",
        "p99_us",
        "cpu_p99_us",
        "p50_us_2k",
        "p99_us_2k",
        "cpu_p99_us_2k",
        "plain_loop_us",
        "loop_ratio",
        "accept_us",
        "verify_us",
    }
    assert all(value > 0 for value in figures.values())
    assert figures["p50_us"] <= figures["p99_us"]


def test_its_jobs_mostly_find_a_node() -> None:
    rng = random.Random(1)
    book, reputation = bench.make_market(300, rng)
    jobs = list(bench.draw_jobs(100, [entry.node for entry in book], rng))
    found = [match(job, book, reputation, now_ms=bench.NOW_MS, rng=rng).candidates for job in jobs]
    assert sum(map(bool, found)) > 80
