"""Pages that repeat what the code says, or name its files, are compared with it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import capanode.config
import coordinator.buyer_config
import coordinator.settings
from protocol.programs.settings import settings_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("program", "config"),
    [
        ("capanode", capanode.config.NodeConfig),
        ("coordinator", coordinator.settings.CoordinatorConfig),
        ("buyers", coordinator.buyer_config.BuyerConfig),
    ],
)
def test_the_page_for_operators_lists_the_settings_as_they_are(program: str, config: type) -> None:
    page = (DOCS / "operating.md").read_text()
    start, end = f"<!-- settings of {program} -->\n", f"\n<!-- end of settings of {program} -->"
    assert page.partition(start)[2].partition(end)[0] == settings_table(config)


PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")]
)
# Names that stand for others, and what npm makes.
NO_FILES = {"docs/decisions/NNNN-title.md", "tests/interop/node_modules"}


def pages() -> Iterator[tuple[str, str]]:
    return ((str(page.relative_to(ROOT)), page.read_text()) for page in PAGES)


def test_the_files_that_pages_name_are_there() -> None:
    named = re.compile(r"`((?:capanode|contracts|coordinator|docs|protocol|sim|tests)/[\w./*-]+)`")
    missing = {
        (page, path)
        for page, text in pages()
        for path in named.findall(text)
        if path not in NO_FILES
        and not any(ROOT.glob(path.rstrip("/")))
        and not (ROOT / f"{path}.py").exists()
    }
    assert not missing


def test_the_flow_of_a_job_leads_through_files_that_are_there() -> None:
    page = (DOCS / "architecture.md").read_text()
    drawn = page.partition("## The path of a job")[2].partition("## Who runs where")[0]
    paths = re.findall(r"\b(?:capanode|coordinator|protocol)/[\w./]*\w", drawn)
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_sentences_of_pages_say_who_does_what() -> None:
    """Tables and quotations may name a test, or what not to write."""
    vague = re.compile(r"\b(whoever|nobody|somebody|everybody|anybody)\b", re.IGNORECASE)
    assert not [
        f"{page}:{number}"
        for page, text in pages()
        for number, line in enumerate(text.splitlines(), 1)
        if not line.startswith("|") and vague.search(re.sub(r'"[^"]*("|$)', "", line))
    ]


def test_the_links_of_pages_lead_somewhere() -> None:
    broken = {
        (page, target)
        for page, text in pages()
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
        if not (ROOT / page).parent.joinpath(target).exists()
    }
    assert not broken
