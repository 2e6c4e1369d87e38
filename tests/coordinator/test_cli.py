"""The commands that work on the books, as an operator types them; the market's own are in
tests/integration."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from typer.testing import CliRunner

from coordinator.accounts import AccountError
from coordinator.cli import app, main
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import CommandError, open_books
from coordinator.cli.reasons import reason_words
from coordinator.cli.tasks import InputOptions, read_input
from coordinator.db.api_keys import authenticate
from coordinator.db.engine import InlineRunner, open_database
from coordinator.market.matching import Reason
from coordinator.settings import CoordinatorConfig
from protocol.errors import CapaError, leaves
from protocol.messages import (
    NO_CONSTRAINTS,
    Constraints,
    DataCollection,
    IsolationTier,
    PriceCap,
    Task,
)
from protocol.programs.commands import UsageError
from tests.protocol.makers import NODE, STRANGER


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("COORDINATOR_"):
            monkeypatch.delenv(name)
    yield
    structlog.reset_defaults()


def invoke(*arguments: str, data_dir: Path) -> str:
    """What the command prints. Raises what it raises: `main` turns that into words."""
    result = CliRunner().invoke(app, [*arguments, f"--data-dir={data_dir}"])
    if isinstance(result.exception, CapaError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def invoke_json(*arguments: str, data_dir: Path) -> Any:
    return json.loads(invoke(*arguments, "--json", data_dir=data_dir))


def constraints_of(*arguments: str) -> Constraints:
    """What a command is called with that takes constraints."""
    seen: list[Constraints] = []
    probe = typer.Typer()

    @probe.command()
    @takes_constraints
    def command(constraints: Constraints, plain: str = "") -> None:
        seen.append(constraints)

    result = CliRunner().invoke(probe, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_without_options_nothing_is_constrained() -> None:
    assert constraints_of() == constraints_of("--plain=x") == NO_CONSTRAINTS


def test_every_constraint_can_be_typed() -> None:
    node, other = NODE.peer_id, STRANGER.peer_id
    assert constraints_of(
        *("--max-cost=0.5", "--max-price-in=1", "--max-price-out=2.5", "--max-price-image=0.01"),
        *("--max-latency-ms=300", f"--only={node}", f"--only={other}", f"--ignore={other}"),
        *(f"--order={node}", "--no-fallbacks", "--region=eu", "--region=us"),
        *("--quantization=bf16", "--isolation=bwrap", "--data-collection=deny"),
    ) == Constraints(
        max_price=PriceCap(1_000_000_000, 2_500_000_000, 10_000_000),
        max_cost_nano=500_000_000,
        max_latency_ms=300,
        order=(node,),
        only=(node, other),
        ignore=(other,),
        allow_fallbacks=False,
        quantizations=("bf16",),
        regions=("eu", "us"),
        isolation=IsolationTier.BWRAP,
        data_collection=DataCollection.DENY,
    )


@pytest.mark.parametrize("option", ["--max-cost=much", "--only=somebody", "--max-price-in=-1"])
def test_a_constraint_that_is_none_is_named(option: str) -> None:
    with pytest.raises(UsageError):
        constraints_of(option)


@pytest.mark.parametrize(
    "command",
    [
        ("accounts", "create", "ada", "--credit=-5"),
        ("accounts", "create", "ada", "--credit=99999999999"),
        ("accounts", "create", "ada", "--credit=0"),
        ("accounts", "create", "ada", "--peer-id=somebody"),
        ("accounts", "credit", "ada", "1", "--id=mine"),
        ("submit", "a-model", "a prompt", "--input=file"),
        ("submit", "a-model", "a prompt", "--coordinator=/ip4/127.0.0.1/tcp/4100"),
        ("config", "show", "--config=/nowhere/coordinator.toml"),
    ],
    ids=" ".join,
)
def test_an_argument_that_cannot_be_meant_is_wrong_usage(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [*command, f"--data-dir={tmp_path / 'data'}"])
    errors = leaves(result.exception) if result.exception is not None else []
    assert [type(error) for error in errors if not isinstance(error, UsageError)] == []
    assert not (tmp_path / "data").exists()


def test_an_empty_input_is_not_bought(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="the input is empty"):
        invoke("submit", "a-model", data_dir=tmp_path)
    for prompt in ("", " \n"):
        with pytest.raises(UsageError, match="the prompt is empty"):
            invoke("submit", "a-model", prompt, data_dir=tmp_path)


@pytest.mark.parametrize("command", [("quote",), ("submit",), ("chat",), ("nodes", "--model")])
def test_a_name_that_no_model_can_have_is_wrong_usage(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "x" * 129])
    assert result.exit_code == 2
    assert "at most 128 characters" in result.output


def test_a_time_beyond_every_job_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["submit", "a-model", "hi", f"--max-latency-ms={10**20}"])
    assert result.exit_code == 2


JOB = "01KDVDNA00Q4B6775ZS7SA7EZ9"


@pytest.mark.parametrize(
    "command",
    [
        ("ledger", "audit"),
        ("ledger", "show"),
        ("accounts", "show"),
        ("accounts", "show", "ada"),
        ("accounts", "credit", "ada", "5"),
        ("keys", "create", "ada"),
        ("keys", "list"),
        ("keys", "revoke", JOB),
        ("jobs", "list"),
        ("jobs", "show", JOB),
        ("receipts", "export", JOB),
    ],
    ids=" ".join,
)
def test_a_wrong_data_directory_is_named_and_not_made(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    wrong = tmp_path / "typo"
    with pytest.raises(CommandError, match=r"there are no books at .*typo.*--data-dir"):
        invoke(*command, data_dir=wrong)
    assert not wrong.exists()


def test_an_account_is_opened_before_the_coordinator_has_ever_run(tmp_path: Path) -> None:
    home = tmp_path / "new"
    made = invoke_json("accounts", "create", "ada", "--credit=12.5", data_dir=home)
    assert made["available_nano"] == 12_500_000_000
    assert invoke_json("accounts", "show", "ada", data_dir=home) == made
    assert "ada" in invoke("accounts", "show", data_dir=home)
    assert (home / "coordinator.key").stat().st_mode & 0o077 == 0
    audit = invoke_json("ledger", "audit", data_dir=home)
    assert (audit["green"], audit["transfers"]) == (True, 1)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", " padded", "", "x" * 129])
def test_a_name_that_would_spoil_a_table_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(AccountError, match="is not a name"):
        invoke("accounts", "create", name, data_dir=tmp_path)
    if name:
        with pytest.raises(AccountError, match="is not a name"):
            invoke("keys", "create", "ada", f"--name={name}", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["operator", "issuance", NODE.peer_id])
def test_a_name_is_not_the_id_of_an_account(name: str, tmp_path: Path) -> None:
    with pytest.raises(AccountError, match="is an id"):
        invoke("accounts", "create", name, data_dir=tmp_path)


@pytest.mark.parametrize("task", [Task.CAUSAL_LM, Task.EMBEDDING])
def test_an_input_that_is_no_text_is_told_so(task: Task) -> None:
    with pytest.raises(CommandError, match="the input is not UTF-8 text"):
        read_input(task, b"\xff\xfe", InputOptions(8, 0.0, None, 5, False))


def test_credit_under_the_same_id_is_given_once(tmp_path: Path) -> None:
    invoke("accounts", "create", "ada", data_dir=tmp_path)
    for _ in range(2):
        account = invoke_json("accounts", "credit", "ada", "5", f"--id={JOB}", data_dir=tmp_path)
    assert account["available_nano"] == 5_000_000_000
    (transfer,) = invoke_json("ledger", "show", "ada", data_dir=tmp_path)
    assert transfer["code"] == "credit"
    with pytest.raises(AccountError):
        invoke("accounts", "credit", "eve", "5", data_dir=tmp_path)


def test_an_api_key_is_shown_once_and_works_until_it_is_revoked(tmp_path: Path) -> None:
    invoke("accounts", "create", "ada", data_dir=tmp_path)
    made = invoke_json("keys", "create", "ada", "--budget=2", "--name=laptop", data_dir=tmp_path)
    listed = invoke("keys", "list", "--json", data_dir=tmp_path)
    assert made["key"] not in listed
    (row,) = json.loads(listed)
    assert (row["name"], row["budget_nano"]) == ("laptop", 2_000_000_000)
    assert is_known(tmp_path, made["key"])
    invoke("keys", "revoke", row["id"], data_dir=tmp_path)
    assert not is_known(tmp_path, made["key"])
    with pytest.raises(CommandError, match="could be revoked"):
        invoke("keys", "revoke", row["id"], data_dir=tmp_path)


def is_known(data_dir: Path, secret: str) -> bool:
    database = open_database(f"sqlite:///{data_dir / 'books.sqlite'}", InlineRunner())
    try:
        with database.transaction() as conn:
            return authenticate(conn, secret) is not None
    finally:
        database.close()


def test_a_gateway_without_a_market_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a market with --coordinator"):
        invoke("gateway", data_dir=tmp_path)


def test_keys_of_a_gateway_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = invoke_json("gateway", "keys", "create", "ada", "--budget=2", data_dir=tmp_path)
    assert made["key"].startswith("sk-capa-")
    (row,) = invoke_json("gateway", "keys", "list", data_dir=tmp_path)
    assert (row["name"], row["budget_nano"], row["revoked_at_ms"]) == ("ada", 2 * 10**9, None)
    assert "key" not in row
    invoke("gateway", "keys", "revoke", row["id"], data_dir=tmp_path)
    with pytest.raises(CommandError, match="could be revoked"):
        invoke("gateway", "keys", "revoke", row["id"], data_dir=tmp_path)
    assert "revoked" in invoke("gateway", "keys", "list", data_dir=tmp_path)


def test_a_key_is_made_with_what_it_says_of_routing(tmp_path: Path) -> None:
    invoke("accounts", "create", "ada", data_dir=tmp_path)
    invoke("keys", "create", "ada", '--provider={"zdr": true}', data_dir=tmp_path)
    for wrong in ("fast", '{"colour": "red"}', '{"max_latency": "x"}', "[]"):
        with pytest.raises(UsageError, match="--provider"):
            invoke("keys", "create", "ada", f"--provider={wrong}", data_dir=tmp_path)


def test_what_is_logged_meanwhile_does_not_mix_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CoordinatorConfig.resolve(flags={"data_dir": tmp_path})
    with open_books(config, create=True):
        structlog.get_logger("test").warning("something_happened")
    told = capsys.readouterr()
    assert told.out == ""
    assert "something_happened" in told.err


def test_a_client_does_not_found_a_market_by_opening_an_account(tmp_path: Path) -> None:
    invoke("whoami", data_dir=tmp_path)
    with pytest.raises(CommandError, match=r"belongs to a buyer .*`coordinator start`"):
        invoke("accounts", "create", "ada", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["client.key"]


def test_a_new_market_is_told(tmp_path: Path) -> None:
    first, second = (
        CliRunner().invoke(app, ["accounts", "create", name, f"--data-dir={tmp_path}"])
        for name in ("ada", "bob")
    )
    assert "first account of a new market" in first.stderr
    assert "new market" not in second.stderr


def test_every_reason_of_a_node_has_words() -> None:
    of_the_job = {"unknown_model", "deadline_passed", "attempts_exhausted", "fallback_not_allowed"}
    for reason in set(Reason) - of_the_job:
        words = reason_words(reason)
        assert words != reason.replace("_", " ")
        assert reason_words(f"{reason}: x") == f"{words} (x)"
    assert reason_words("of_a_later_version: x") == "of a later version (x)"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nodes", "--no-such-option"],
        ["no-such-command"],
        ["submit"],
        ["submit", "a-model", "x", "--max-tokens=-1"],
        ["submit", "a-model", "x", "--objective=speed"],
        ["submit", "a-model", "x", "--max-cost=much"],
        ["submit", "a-model", "x", "--coordinator=nowhere"],
        ["nodes", "--config=/no/such/file"],
        ["gateway", "--http=here"],
    ],
    ids=" ".join,
)
def test_a_bad_option_is_2_and_json_where_that_was_asked(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["coordinator", *arguments, *as_json])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 2
        assert told.out == ""
        if as_json:
            assert json.loads(told.err)["error"]["code"] == "usage"
