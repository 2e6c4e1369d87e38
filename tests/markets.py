"""Which test files share a market of real processes, and in which order files are run."""

from pathlib import Path

SHARED_MARKETS = (
    (
        "test_market.py",
        "test_openai_client.py",
        "test_logs.py",
        "test_edge_gateway.py",
        "test_terminal.py",
        "test_examples.py",
        "test_batches.py",
        "test_dialects.py",
        "test_retries.py",
    ),
    (
        "test_failures_kill.py",
        "test_failures_protocol.py",
        "test_failures_twins.py",
        "test_failures_edge.py",
        "test_failures_batches.py",
        "test_clients_that_leave.py",
    ),
    ("test_javascript_buys.py", "test_javascript_sells.py", "test_javascript_refused.py"),
)
_SLOW_FOLDERS = ("integration", "sim")


def sharing(path: Path) -> int | None:
    """The market's number, or None for a file without one."""
    return next((n for n, files in enumerate(SHARED_MARKETS) if path.name in files), None)


def start_rank(path: Path) -> int:
    """Lower begins earlier."""
    market = sharing(path)
    if market is not None:
        return market
    folders = [n for n, folder in enumerate(_SLOW_FOLDERS) if folder in path.parts]
    return len(SHARED_MARKETS) + (folders[0] if folders else len(_SLOW_FOLDERS))
