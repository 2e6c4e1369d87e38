"""A coordinator as a program of its own, without a market around it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_coordinator(data_dir: Path, *options: str) -> Iterator[tuple[str, ...]]:
    """Yields its addresses when it serves; stops it afterwards."""
    command = [sys.executable, "-m", "coordinator", "start", f"--data-dir={data_dir}", "--json"]
    ports = ["--http=127.0.0.1:0", "--listen=/ip4/127.0.0.1/tcp/0", "--log-level=error"]
    with subprocess.Popen(
        [*command, *ports, *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            # The first line is written when it serves.
            yield tuple(json.loads(process.stdout.readline())["addresses"])
        finally:
            process.terminate()
