"""Which benchmarks there are, what each measures, and what we aim for.

A target is stated beside the figure and never asserted: a noisy machine is not a regression.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Target:
    """`figure` should be at most (or, `at_least`, no less than) `bound`."""

    figure: str
    bound: float
    at_least: bool = False

    def is_met(self, figures: Figures) -> bool:
        value = figures[self.figure]
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`sim.bench.<name>` has `run()`, which returns figures by name."""

    name: str
    summary: str
    targets: tuple[Target, ...] = ()
    takes: str = "up to a minute"

    def verdict(self, figure: str, figures: Figures) -> str:
        """The target of a figure, and whether it is met; empty if there is none."""
        for target in self.targets:
            if target.figure == figure:
                sign = "≥" if target.at_least else "≤"
                word = "met" if target.is_met(figures) else "missed"
                return f"{sign} {target.bound:g}: {word}"
        return ""

    def run(self) -> Figures:
        # As in a worker's sandbox, and before torch is imported: threads that spin while they wait
        # take the processor from whom they wait for, and a comparison must treat both sides alike.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        module = importlib.import_module(f"sim.bench.{self.name}")
        return cast(Callable[[], Figures], module.run)()


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "overhead",
            "gateway, lease, libp2p and sandbox against the same engine in-process",
            (
                Target("added_ttft_ms_p50", 3.0),
                Target("added_ttft_ms_p99", 10.0),
                Target("throughput_ratio_8", 0.95, at_least=True),
                Target("throughput_ratio_32", 0.95, at_least=True),
                Target("rss_coordinator_mb", 200.0),
                Target("rss_node_mb", 150.0),
                Target("rss_worker_mb", 1_200.0),
            ),
        ),
        Benchmark(
            "market",
            "speed beside an engine with cores of its own, and processor time per token",
            (
                Target("market_share_8", 0.95, at_least=True),
                Target("market_share_32", 0.95, at_least=True),
                Target("market_cpu_us_per_token_32", 150.0),
            ),
            takes="two minutes",
        ),
        Benchmark(
            "gateway",
            "what door and market add to a mock engine, beside LiteLLM's proxy and vLLM's router",
            (
                Target("added_ms_p50", 1.5),
                Target("pool_added_ms_p50", 0.5),
                Target("long_prompt_added_ms_p50", 50.0),
                Target("jobs_per_core_s", 500.0, at_least=True),
                Target("litellm_ratio_rps", 20.0, at_least=True),
                Target("litellm_ratio_added", 14.0, at_least=True),
                Target("chunk_cpu_us", 100.0),
                Target("streams_ok", 1_000.0, at_least=True),
                Target("stream_memory_kb", 60.0),
                Target("stream_token_ms_p99", 1_100.0),
            ),
            takes="three minutes; `make bench-deps` installs what it is compared with",
        ),
        Benchmark(
            "failover",
            "how long streams stand still whose node is killed, until another goes on",
            (Target("failover_gap_ms_p50", 250.0),),
        ),
        Benchmark(
            "engine",
            "causal_lm against llama.cpp and transformers' generate on the same weights",
            (
                *(Target(f"ratio_{n}", 1.0, at_least=True) for n in (1, 8, 32)),
                *(Target(f"generate_ratio_{n}", 1.3, at_least=True) for n in (8, 32)),
                *(
                    Target(f"llama_cpp_ratio_{n}", bound, at_least=True)
                    for n, bound in {1: 1.0, 8: 1.5, 16: 2.0, 32: 2.5}.items()
                ),
                Target("prefill_ratio", 1.0, at_least=True),
                Target("draft_gain_copying", 1.3, at_least=True),
                Target("draft_gain_plain", 0.98, at_least=True),
                Target("gumbel_agreement", 0.98, at_least=True),
                Target("prefix_hit_share", 0.15),
            ),
            takes="three minutes; `make bench-deps` builds llama.cpp to compare with",
        ),
        Benchmark(
            "embedding",
            "texts of mixed lengths against sentence-transformers on the same weights",
            (
                Target("embedding_ratio", 1.5, at_least=True),
                Target("worst_cosine", 0.9999, at_least=True),
            ),
            takes="a minute; `make bench-deps` installs what it is compared with",
        ),
        Benchmark(
            "gpu",
            "what is to be seen on a GPU: CUDA in the sandbox, our engine, transformers beside it",
            (
                *(Target(f"starts_{place}", 1.0, at_least=True) for place in ("bwrap", "landlock")),
                *(
                    Target(f"8b_{cell}_floor_share", 0.7, at_least=True)
                    for cell in ("1x200", "32x1000")
                ),
                Target("confined_ratio_1b_1x200", 0.97, at_least=True),
                Target("confined_ratio_1b_32x1000", 0.97, at_least=True),
                Target("1b_32x1000_launches", 5.0),
            ),
            takes="four minutes with a GPU, seconds with a tiny model without",
        ),
        Benchmark(
            "windows",
            "CPU to sign for a text while it streams, all parties together",
            tuple(
                Target(f"us_per_token_{tokens}_w{window}", 5.0)
                for tokens in (64, 256, 1_024)
                for window in (16, 256)
            ),
        ),
        Benchmark(
            "batch",
            "10,000 embedding lines against the same engine in-process, and a day of idle seats",
            (
                Target("batch_ratio", 0.9, at_least=True),
                Target("day_median_min", 7.0),
                Target("day_within_hour", 0.9, at_least=True),
            ),
            takes="two to three minutes",
        ),
        Benchmark("match", "one decision among 1,000 offers", (Target("p50_us", 200.0),)),
        Benchmark(
            "strangers",
            "requests lost or late beside a bad machine of each kind, as one node and as fifty",
            (
                Target("worst_hurt", 5.0),
                Target("false_ejections", 0.0),
                Target("refused_while_idle", 0.0),
            ),
            takes="four minutes",
        ),
        Benchmark(
            "reach",
            "buyers that reach nodes behind routers, and that need no relay in the end",
            (
                Target("reachable_share", 1.0, at_least=True),
                Target("direct_share", 0.7, at_least=True),
                Target("relay_lost_s", 10.0),
                Target("node_moved_s", 10.0),
                Target("router_moved_s", 10.0),
            ),
            takes="a minute; needs nftables and user namespaces",
        ),
        Benchmark(
            "ledger",
            "durable hold+capture pairs with 100 submitters, beside the disk's own fdatasync",
        ),
        Benchmark(
            "sandbox",
            "a sandboxed worker against the same bare process",
            (Target("steady_ratio", 1.03),),
        ),
    )
}
