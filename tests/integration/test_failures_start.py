"""Programs that cannot start say why in one line, name what is in the way, and exit with 1."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.start_programs import running_coordinator

pytestmark = pytest.mark.slow

REFUSED_WITHIN_S = 60


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


def refusal(module: str, *arguments: str) -> str:
    """What a start that must fail says. Only the talk for people: logs are not looked at."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=REFUSED_WITHIN_S
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "[info" not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def start_coordinator(data_dir: Path, *, http: int = 0, listen: int = 0) -> str:
    return refusal(
        "coordinator",
        "start",
        f"--data-dir={data_dir}",
        f"--http=127.0.0.1:{http}",
        f"--listen=/ip4/127.0.0.1/tcp/{listen}",
    )


def test_a_coordinator_names_the_port_that_is_taken(tmp_path: Path, taken: int) -> None:
    for words in (
        start_coordinator(tmp_path, http=taken),
        start_coordinator(tmp_path, listen=taken),
    ):
        assert str(taken) in words
        assert "choose another port" in words
    # Nothing is left that would keep it from starting now, or tell commands that it runs.
    assert not (tmp_path / "endpoint.json").exists()
    with running_coordinator(tmp_path):
        pass


def test_a_node_names_the_port_that_is_taken(tmp_path: Path, taken: int) -> None:
    data_dir = f"--data-dir={tmp_path / 'node'}"
    subprocess.run([sys.executable, "-m", "capanode", "init", data_dir], check=True)
    words = refusal("capanode", "start", data_dir, f"--listen=/ip4/127.0.0.1/tcp/{taken}")
    assert str(taken) in words
    assert "--listen" in words


def test_a_second_coordinator_does_not_touch_the_books_of_the_first(tmp_path: Path) -> None:
    with running_coordinator(tmp_path):
        words = start_coordinator(tmp_path)
        assert str(tmp_path) in words
        assert "--data-dir" in words
        # The first one is still the one that commands find.
        assert (tmp_path / "endpoint.json").exists()


def test_a_store_to_share_that_is_none_is_named_with_what_fills_it(tmp_path: Path) -> None:
    store = tmp_path / "nothing"
    words = refusal(
        "coordinator", "start", f"--data-dir={tmp_path / 'home'}", f"--share-store={store}"
    )
    assert f"capanode models pull NAME --model-store {store}" in words
