import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sim.world
from sim.cli import app
from sim.options import NO_FAULTS, Demand, WorldOptions, draw_options
from sim.report import render, seed_line, to_json
from sim.world import WorldResult, run_world

SMALL = WorldOptions(chaos_s=8.0, faults=replace(NO_FAULTS, partitions=1), demand=Demand(jobs=8))


@cache
def result() -> WorldResult:
    return run_world(4, options=SMALL)


@pytest.fixture
def small_worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`sim run` with a world that takes a tenth of the time."""
    monkeypatch.setattr(sim.world, "draw_options", lambda seed: SMALL)
    assert draw_options(1) != SMALL
    return iter(())


def test_the_page_says_what_happened() -> None:
    page = "\n".join(render(result()))
    assert "8 jobs in 8 s of chaos" in page
    for what in ("answered", "partition", "client-3", "operator", result().trace_sha256):
        assert what in page
    assert page.endswith("and the books balance")


def test_violations_come_last_in_full() -> None:
    broken = replace(result(), violations=("this is wrong", "and that"))
    lines = list(render(broken))
    assert lines[-3:] == ["2 violations:", "  this is wrong", "  and that"]
    assert to_json(broken)["ok"] is False


def test_the_object_is_plain_and_complete() -> None:
    plain = json.loads(json.dumps(to_json(result())))
    assert plain["ok"] is True
    assert sum(plain["outcomes"].values()) == plain["jobs"] == 8
    assert sum(plain["money_nano"].values()) == plain["credited_nano"]
    assert plain["captured_nano"] > 0
    assert set(plain["first_output_ms"]) == {"p50", "p90", "p99"}
    assert plain["options"]["demand"]["jobs"] == 8


@pytest.mark.usefixtures("small_worlds")
def test_the_command_prints_the_seed_first_and_last_and_writes_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    ran = CliRunner().invoke(app, ["run", "--seed", "4", "--trace", str(path)])
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[0] == lines[-1] == seed_line(4)
    assert len(path.read_text().splitlines()) == result().trace_lines


@pytest.mark.usefixtures("small_worlds")
def test_the_command_prints_one_object() -> None:
    ran = CliRunner().invoke(app, ["run", "--seed", "4", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["trace_sha256"] == result().trace_sha256
    assert ran.stderr.splitlines() == [seed_line(4)] * 2


def test_the_command_fails_when_an_invariant_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(result(), violations=("this is wrong",))
    monkeypatch.setattr(sim.world, "run_world", lambda seed, sink: broken)
    ran = CliRunner().invoke(app, ["run", "--seed", "4"])
    assert ran.exit_code == 1
    assert "this is wrong" in ran.stdout
    assert ran.stdout.splitlines()[-1] == seed_line(4)


def test_a_trace_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["run", "--trace", str(tmp_path / "no" / "file")])
    assert ran.exit_code == 2
    assert "cannot be written" in " ".join(ran.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_model_store_that_is_not_there_is_wrong_usage(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "typo"
    ran = CliRunner().invoke(app, [command, "--models", str(missing)])
    assert ran.exit_code == 2
    assert "there is no model store" in " ".join(ran.stderr.replace("│", " ").split())
    assert not missing.exists()
