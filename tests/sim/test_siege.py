"""The siege's table is complete, and its cheapest attacks are made on a real market."""

from pathlib import Path

import trio

from sim.siege.attack import Attack, AttackResult
from sim.siege.ground import Ground
from sim.siege.runner import SiegeLine, run_siege
from sim.siege.table import ATTACKS, attacks_of


def test_every_attack_has_a_name_of_its_own() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)


def test_a_row_or_a_letter_stands_for_its_attacks() -> None:
    [first, *_] = ATTACKS
    assert attacks_of(first.name) == [first]
    assert set(attacks_of("A1")) < set(attacks_of("a")) <= set(ATTACKS)
    assert not attacks_of("z9")


async def _fails(ground: Ground) -> AttackResult:
    raise OSError("no socket is left")


def test_attacks_are_made_on_a_real_market(tmp_path: Path) -> None:
    unmade = Attack("unmade", "Z1", "fails before it has begun", _fails)
    heard: list[SiegeLine] = []
    lines = trio.run(
        run_siege, [*attacks_of("early-receipt"), unmade], tmp_path, tmp_path, heard.append
    )
    assert lines == heard
    assert [line.result.held for line in lines] == [True, False], lines
    assert "no socket is left" in lines[1].result.honest_under
    assert set(lines[0].to_json()) >= {"name", "held", "honest_before", "honest_under"}
