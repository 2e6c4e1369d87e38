"""What is committed is what the sources compile to, is documented, and fits on a chain."""

import json
import re
from pathlib import Path

import pytest

from contracts.abi import load_artifact
from contracts.build import ARTIFACTS, NAMES, ROOT, build
from contracts.deploy import ALLOWED_TOKENS, PUBLIC_TERMS, TRIAL_TERMS, check_token
from contracts.errors import BadConfigurationError
from contracts.state import Terms
from contracts.units import parse_address
from tests.contracts.evm import CODE_BYTES_MAX
from tests.contracts.mutate import one_line


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_artifacts_are_the_sources_compiled_byte_for_byte(name: str) -> None:
    assert (ARTIFACTS / f"{name}.json").read_text() == build(name), "run `make contracts`"


@pytest.mark.parametrize("name", NAMES)
def test_the_code_fits_on_a_chain(name: str) -> None:
    content = json.loads((ARTIFACTS / f"{name}.json").read_text())
    assert content["runtime_bytes"] <= CODE_BYTES_MAX
    assert load_artifact(name).bytecode.hex() == content["bytecode"][2:]


def sources() -> list[Path]:
    return sorted((ROOT / "contracts").rglob("*.vy"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_everything_external_says_what_it_does(path: Path) -> None:
    text = path.read_text()
    for match in re.finditer(r"@external\n(?:@view\n)?def (\w+)\((.*?)\).*?:\n(.*?)\n", text, re.S):
        name, parameters, first = match.groups()
        assert first.strip() == '"""', f"{path.name}: {name} has no NatSpec"
        comment = text[match.end() : text.index('"""', match.end())]
        assert "@notice" in comment, name
        for parameter in re.findall(r"(\w+): ", parameters):
            assert f"@param {parameter} " in comment, f"{name}: {parameter}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_every_refusal_has_a_reason(path: Path) -> None:
    lines = [line.strip() for line in one_line(path.read_text()).splitlines()]
    assert not [line for line in lines if line.startswith("assert") and '"' not in line]


def test_reasons_are_short_and_told_apart() -> None:
    """One storage word each: `who: why`."""
    reasons = [
        reason
        for path in sources()
        for reason in re.findall(r', "([a-z]+: [^"]+)"', path.read_text())
    ]
    assert len(reasons) > 60
    assert all(len(reason) <= 32 for reason in reasons)


def test_nothing_but_the_switch_belongs_to_the_owner() -> None:
    users = [path.stem for path in sources() if "guard." in path.read_text()]
    assert users == ["Settlement", "channels"]
    assert (ROOT / "contracts/parts/channels.vy").read_text().count("guard.") == 1


def test_nothing_delegates_creates_destroys_or_takes_ether() -> None:
    """No proxy, no code that changes, no ether that would be stuck."""
    banned = r"is_delegate_call|selfdestruct|create_\w+\(|create_from|tx\.origin|@payable|\bsend\("
    assert not [path.name for path in sources() if re.search(banned, path.read_text())]


def test_listed_tokens_are_well_formed_addresses() -> None:
    for chain_id, tokens in ALLOWED_TOKENS.items():
        for token in tokens:
            assert parse_address(token) == token
            check_token(chain_id, token)
            with pytest.raises(BadConfigurationError, match="not a listed token"):
                check_token(chain_id + 1, token)


@pytest.mark.parametrize("terms", [PUBLIC_TERMS, TRIAL_TERMS])
def test_the_offered_terms_leave_time_to_object(terms: Terms) -> None:
    assert terms.exit_delay_s > 2 * (terms.window_s + terms.response_s)
    assert terms.stale_after_s > terms.window_s + terms.response_s
    assert terms.stake_min // 2 >= terms.bond
