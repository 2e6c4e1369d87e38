"""Pages that repeat what the code says are compared with it."""

from pathlib import Path

import pytest

import capanode.config
import coordinator.settings
from protocol.programs.settings import settings_table

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize(
    ("program", "config"),
    [
        ("capanode", capanode.config.NodeConfig),
        ("coordinator", coordinator.settings.CoordinatorConfig),
    ],
)
def test_the_page_for_operators_lists_the_settings_as_they_are(program: str, config: type) -> None:
    page = (DOCS / "operating.md").read_text()
    start, end = f"<!-- settings of {program} -->\n", f"\n<!-- end of settings of {program} -->"
    assert page.partition(start)[2].partition(end)[0] == settings_table(config)
