"""One coordinator per database, by whatever path it is reached."""

from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.db.engine import only_coordinator
from protocol.programs.locks import AlreadyRunningError


def symlink(path: Path) -> Path:
    (other := path.parent / "link.sqlite").symlink_to(path)
    return other


def hard_link(path: Path) -> Path:
    (other := path.parent / "twin.sqlite").hardlink_to(path)
    return other


def by_another_folder(path: Path) -> Path:
    (other := path.parent / "elsewhere").symlink_to(path.parent)
    return other / path.name


def the_same(path: Path) -> Path:
    return path


@pytest.mark.parametrize("other", [the_same, symlink, hard_link, by_another_folder])
def test_a_second_coordinator_fails_at_once(tmp_path: Path, other: Callable[[Path], Path]) -> None:
    path = tmp_path / "books.sqlite"
    with only_coordinator(f"sqlite:///{path}"):
        same = other(path)
        with (
            pytest.raises(AlreadyRunningError, match="another coordinator runs on the database"),
            only_coordinator(f"sqlite:///{same}"),
        ):
            pass
    with only_coordinator(f"sqlite:///{path}"):
        pass


def test_two_databases_do_not_exclude_each_other(tmp_path: Path) -> None:
    with (
        only_coordinator(f"sqlite:///{tmp_path / 'one.sqlite'}"),
        only_coordinator(f"sqlite:///{tmp_path / 'two.sqlite'}"),
        only_coordinator("sqlite://"),
    ):
        pass
