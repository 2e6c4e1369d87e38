"""Makes attacks one after the other on one market, and tells what became of each."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from protocol.errors import CapaError, leaves
from protocol.net.serve import describe
from sim.siege.attack import ATTACK_WITHIN_S, Attack, AttackResult
from sim.siege.ground import Ground, open_ground
from sim.siege.real_node import real_node


@dataclass(frozen=True, slots=True)
class SiegeLine:
    """One attack with its result; an attack that could not be made counts as one that fell."""

    attack: Attack
    result: AttackResult
    took_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.attack.name,
            "row": self.attack.row,
            "held": self.result.held,
            "honest_before": self.result.honest_before,
            "honest_under": self.result.honest_under,
            "took_s": round(self.took_s, 1),
        }

    def __str__(self) -> str:
        word = "held" if self.result.held else "FELL"
        head = f"{self.attack.row:<2} {self.attack.name:<22} {word} {self.took_s:5.1f} s"
        before, under = self.result.honest_before, self.result.honest_under
        return f"{head}  before: {before}; under attack: {under}"


async def run_siege(
    attacks: Sequence[Attack],
    folder: Path,
    model_store: Path,
    on_line: Callable[[SiegeLine], None],
) -> list[SiegeLine]:
    """Every attack has a deadline, and nodes and clients of its own."""
    lines = []
    async with open_ground(folder, model_store) as ground:
        for attack in attacks:
            lines.append(await _make(attack, ground))
            on_line(lines[-1])
    return lines


async def _make(attack: Attack, ground: Ground) -> SiegeLine:
    failure, started_at = "", trio.current_time()
    try:
        if attack.needs_node:
            await real_node(ground)
        started_at = trio.current_time()
        with trio.fail_after(ATTACK_WITHIN_S):
            result = await attack.run(ground)
            return SiegeLine(attack, result, trio.current_time() - started_at)
    except* (CapaError, OSError, trio.TooSlowError) as errors:
        failure = f"the attack could not be made: {describe(errors)}"
    except* Exception as errors:
        # A mistake in one attack must not take the results of the others with it.
        failure = f"the attack has a mistake: {'; '.join(map(_place_of, leaves(errors)))}"
    return SiegeLine(attack, AttackResult(False, "-", failure), trio.current_time() - started_at)


def _place_of(error: BaseException) -> str:
    """What was raised, and where, in one line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    message = " ".join(str(error).split())
    return f"{type(error).__name__} ({message}) at {Path(last.filename).name}:{last.lineno}"
