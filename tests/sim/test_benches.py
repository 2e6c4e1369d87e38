"""Each benchmark reports every figure that it promises, at sizes that take seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capanode.models.store import ModelStore
from sim.bench import (
    batch,
    drafts,
    embedding,
    engine,
    failover,
    gateway,
    ledger,
    market,
    overhead,
    prefix_hits,
    sandbox,
    streams,
)
from sim.bench.catalogue import BENCHMARKS, Benchmark
from sim.cli import app
from sim.demo import CHAT_MODEL, EMBEDDING_MODEL

PROMISED = {
    "overhead": {
        *("added_ttft_ms_p50", "added_ttft_ms_p99", "throughput_ratio_8", "throughput_ratio_32"),
        *("rss_coordinator_mb", "rss_node_mb", "rss_worker_mb", "rss_grown_coordinator_mb"),
        *("cpu_us_per_token_coordinator_32", "cpu_us_per_token_node_32"),
        "cpu_us_per_token_worker_32",
    },
    "market": {
        *("market_share_8", "market_share_32", "market_cpu_us_per_token_32"),
        *("cpu_us_per_token_coordinator_32", "cpu_us_per_token_node_32"),
    },
    "gateway": {
        *(
            "added_ms_p50",
            "pool_added_ms_p50",
            "long_prompt_added_ms_p50",
            "jobs_per_core_s",
            "chunk_cpu_us",
        ),
        *("streams_ok", "stream_memory_kb", "stream_token_ms_p99"),
    },
    "failover": {"failover_gap_ms_p50", "failover_gap_ms_max", "streams_cut"},
    "engine": {
        *("ratio_1", "ratio_8", "ratio_16", "ratio_32", "generate_ratio_8", "generate_ratio_32"),
        *("gumbel_agreement", "prefix_hit_share"),
    },
    "embedding": {"ours_texts_per_s"},
    "reach": {"reachable_share", "direct_share"},
    "batch": {
        *("batch_ratio", "batch_lines_per_s", "alone_lines_per_s", "day_median_min"),
        *("day_within_hour", "day_slowest_min", "day_batches", "day_idle_used"),
    },
    "match": {"p50_us", "p99_us"},
    "gpu": {
        *("start_bare", "start_bwrap_ours", "start_landlock_ours", "starts_bwrap"),
        *("tiny_1x16_decode_tps", "confined_ratio_tiny_3x32", "same_in_a_batch"),
        *("transformers_tps_2x16", "attention_error_fused", "products_tps_16"),
    },
    "windows": {"us_per_token_64_w16", "us_per_token_gross_64_w16"},
    "ledger": {"pairs_per_s", "fdatasync_per_s", "pairs_per_fdatasync"},
    "strangers": {"worst_hurt", "false_ejections", "refused_while_idle"},
    "sandbox": {"startup_added_ms", "steady_ratio"},
}


def assert_complete(name: str, figures: dict[str, float]) -> None:
    targets = {target.figure for target in BENCHMARKS[name].targets}
    # What they compare with need not be installed.
    targets -= {figure for figure in targets if figure.startswith(("litellm_", "llama_cpp_"))}
    targets -= {"embedding_ratio", "worst_cosine", "prefill_ratio"}
    assert PROMISED[name] | targets <= figures.keys()
    assert all(isinstance(value, int | float) for value in figures.values())


def test_every_benchmark_promises_something() -> None:
    assert PROMISED.keys() == BENCHMARKS.keys()


@pytest.mark.bench
def test_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in {"_ROUNDS": 1, "_FDATASYNC_S": 0.05, "_PAIRS_S": 0.2}.items():
        monkeypatch.setattr(ledger, name, size)
    monkeypatch.setattr(ledger, "_LONE_SUBMITS", 5)
    assert_complete("ledger", ledger.run())
    assert not list(tmp_path.iterdir()), "it cleans up"


@pytest.mark.bench
def test_batch(demo_model_store: ModelStore, demo_models: Callable[[str], Path]) -> None:
    demo_models(EMBEDDING_MODEL)
    assert_complete("batch", batch.run(batch.SMALL, demo_model_store.root))


@pytest.mark.bench
def test_embedding(demo_model_store: ModelStore, demo_models: Callable[[str], Path]) -> None:
    demo_models(EMBEDDING_MODEL)
    assert_complete("embedding", embedding.run(demo_model_store.root, texts=8, rounds=1))


@pytest.mark.bench
def test_failover() -> None:
    figures = failover.run(rounds=1)
    assert_complete("failover", figures)
    assert 0 < figures["streams_cut"] <= failover.STREAMS


@pytest.mark.bench
def test_gateway() -> None:
    figures = gateway.run(gateway.SMALL)
    assert_complete("gateway", figures)
    assert figures["streams_ok"] == gateway.SMALL.open_streams


@pytest.mark.bench
def test_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"_START_PAIRS": 1, "_TORCH_PAIRS": 1, "_PAIRS_MIN": 1}.items():
        monkeypatch.setattr(sandbox, name, size)
    monkeypatch.setattr(sandbox, "_ROUNDS_PER_PAIR", 2)
    assert_complete("sandbox", sandbox.run())


@pytest.mark.bench
@pytest.mark.models
def test_engine(
    monkeypatch: pytest.MonkeyPatch,
    demo_model_store: ModelStore,
    demo_models: Callable[[str], Path],
) -> None:
    demo_models(engine.MODEL)
    monkeypatch.setattr(engine, "ROUNDS", dict.fromkeys(engine.ROUNDS, 1))
    monkeypatch.setattr(engine, "LATE_ROUNDS", 1)
    monkeypatch.setattr(engine, "PREFILL_ROUNDS", 1)
    monkeypatch.setattr(drafts, "ROUNDS", 1)
    monkeypatch.setattr(drafts, "COPIED_TOKENS", 6)
    monkeypatch.setattr(drafts, "PLAIN_TOKENS", 6)
    monkeypatch.setattr(prefix_hits, "PAIRS", 1)
    monkeypatch.setattr(streams, "PROMPT_TOKENS", (4, 8))
    monkeypatch.setattr(streams, "ANSWER_TOKENS", (2, 4))
    assert_complete("engine", engine.run(demo_model_store.root))


@pytest.mark.bench
@pytest.mark.models
def test_overhead(
    monkeypatch: pytest.MonkeyPatch,
    demo_model_store: ModelStore,
    demo_models: Callable[[str], Path],
) -> None:
    demo_models(CHAT_MODEL)
    monkeypatch.setattr(overhead, "FIRST_TOKEN_PAIRS", 2)
    monkeypatch.setattr(overhead, "THROUGHPUT", ((1, 2, 1), (8, 2, 1), (32, 2, 1)))
    monkeypatch.setattr(overhead, "GROWTH_WARM_UP_JOBS", 1)
    monkeypatch.setattr(overhead, "GROWTH_JOBS", 2)
    monkeypatch.setattr(overhead, "GROWTH_STREAMS", 2)
    assert_complete("overhead", overhead.run(demo_model_store.root))


@pytest.mark.bench
@pytest.mark.models
def test_market(demo_model_store: ModelStore, demo_models: Callable[[str], Path]) -> None:
    demo_models(CHAT_MODEL)
    figures = market.run(demo_model_store.root, market.SMALL)
    assert_complete("market", figures)


def test_the_command_prints_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"p50_us": 105.0, "p99_us": 300.5}
    monkeypatch.setattr(Benchmark, "run", lambda self: figures)
    plain = CliRunner().invoke(app, ["bench", "match", "--json"])
    assert json.loads(plain.stdout) == figures
    told = CliRunner().invoke(app, ["bench", "match"])
    assert "target ≤ 200: met" in told.stdout
    assert CliRunner().invoke(app, ["bench", "nothing"]).exit_code == 2


def test_without_a_name_all_run_and_one_table_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(self: Benchmark) -> dict[str, float]:
        return {"own": 1.0} | {target.figure: target.bound for target in self.targets}

    monkeypatch.setattr(Benchmark, "run", figures)
    told = CliRunner().invoke(app, ["bench"])
    assert all(name in told.stdout for name in BENCHMARKS)
    assert "≤ 200: met" in told.stdout
    plain = json.loads(CliRunner().invoke(app, ["bench", "--json"]).stdout)
    assert plain.keys() == BENCHMARKS.keys()
