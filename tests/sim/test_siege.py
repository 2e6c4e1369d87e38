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


def test_every_known_row_has_an_attack() -> None:
    rows = "A1 A2 A3 A4 A5 A6 B1 B3 C1 D1 D2 D3 D4 D6 E1 E2 F2 P"
    assert {attack.row for attack in ATTACKS} == set(rows.split())


def test_a_row_or_a_letter_stands_for_its_attacks() -> None:
    [first, *_] = ATTACKS
    assert attacks_of(first.name) == [first]
    assert set(attacks_of("A1")) < set(attacks_of("a")) <= set(ATTACKS)
    assert not attacks_of("z9")


async def _fails(ground: Ground) -> AttackResult:
    raise OSError("no socket is left")


async def _has_a_mistake(ground: Ground) -> AttackResult:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        int(ground.__class__.__name__)
    return AttackResult(True, "-", "-")


def test_attacks_are_made_on_a_real_market(tmp_path: Path) -> None:
    unmade = Attack("unmade", "Z1", "fails before it has begun", _fails)
    mistaken = Attack("mistaken", "Z2", "reads a name for a number", _has_a_mistake)
    attacks = [mistaken, unmade, *attacks_of("early-receipt")]
    heard: list[SiegeLine] = []
    lines = trio.run(run_siege, attacks, tmp_path, tmp_path, heard.append)
    assert lines == heard
    assert [line.result.held for line in lines] == [False, False, True], lines
    assert "ValueError (invalid literal" in lines[0].result.honest_under
    assert "test_siege.py" in lines[0].result.honest_under
    assert "no socket is left" in lines[1].result.honest_under
    assert set(lines[2].to_json()) >= {"name", "held", "honest_before", "honest_under"}
