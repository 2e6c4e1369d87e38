from pathlib import Path

import pytest

from protocol.programs.locks import AlreadyRunningError, hold_lock


def test_a_lock_is_held_once_and_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "program.lock"
    with hold_lock(path, refusal="first"):
        with (
            pytest.raises(AlreadyRunningError, match="stop the other"),
            hold_lock(path, refusal="stop the other"),
        ):
            pass
    with hold_lock(path, refusal="again"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_refused_lock_leaves_the_first_in_force(tmp_path: Path) -> None:
    path = tmp_path / "program.lock"
    with hold_lock(path, refusal="first"):
        for _ in range(2):
            with pytest.raises(AlreadyRunningError), hold_lock(path, refusal="taken"):
                pass
