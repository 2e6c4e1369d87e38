from pathlib import Path

import pytest

from protocol.programs.locks import AlreadyRunningError, hold_lock


def test_a_lock_is_held_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "program.lock"
    with hold_lock(path, refusal="first"):
        for _ in range(2):
            with (
                pytest.raises(AlreadyRunningError, match="stop the other"),
                hold_lock(path, refusal="stop the other"),
            ):
                pass


def test_a_lock_is_free_again_after_its_block_and_private(tmp_path: Path) -> None:
    path = tmp_path / "program.lock"
    for _ in range(2):
        with hold_lock(path, refusal="taken"):
            assert path.stat().st_mode & 0o777 == 0o600
