"""What was acknowledged is there after a crash, and what is there balances."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from coordinator.audit.books import audit
from coordinator.db.engine import Connection
from coordinator.db.transfers import find_transfers
from coordinator.ledger.postings import capture, hold
from protocol.ids import TransferId
from protocol.money import NANO_PER_CREDIT
from tests.coordinator.ledger_makers import NODE, START_MS, file_books, funds_of, opened

ROUNDS = 4


def run_until_killed(path: Path, answers: int) -> list[str]:
    """What the program had acknowledged when SIGKILL met it, after so many answers."""
    command = [sys.executable, "-m", "tests.coordinator.ledger_crasher", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        seen = [program.stdout.readline().strip() for _ in range(answers)]
        program.kill()
        seen += [line.strip() for line in program.stdout if line.endswith("\n")]
    return seen


def transfers_of(line: str) -> list[TransferId]:
    """The ids that an acknowledged line stands for."""
    what, lease_id = line.split()
    funds = funds_of(lease_id)
    if what == "hold":
        return [transfer.id for transfer in hold(funds, timeout_at_ms=START_MS).transfers]
    return [transfer.id for transfer in capture(funds, 60, NODE, fee_bps=500).transfers]


def missing(conn: Connection, lines: list[str]) -> set[TransferId]:
    acknowledged = {transfer_id for line in lines for transfer_id in transfers_of(line)}
    return acknowledged - find_transfers(conn, acknowledged).keys()


@pytest.mark.slow
def test_no_acknowledged_posting_is_lost_when_the_program_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "capa.db"
    with file_books(path, credit_nano=NANO_PER_CREDIT):
        pass
    rng = Random(7)
    lines: list[str] = []
    for _ in range(ROUNDS):
        answers = rng.randint(1, 400)
        seen = run_until_killed(path, answers)
        assert len(seen) >= answers
        lines += seen
        with opened(f"sqlite:///{path}") as database, database.transaction() as conn:
            report = audit(conn)
            assert report.is_green, report.findings
            assert missing(conn, lines) == set()
