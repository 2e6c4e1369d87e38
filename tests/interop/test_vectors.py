"""A stranger's program, which knows docs/protocol.md only, makes the page's test vectors again."""

from tests.interop.javascript import run_javascript


def test_every_vector_and_charge_of_the_page_is_made_again_in_javascript() -> None:
    result = run_javascript("vectors.mjs")
    assert result["differing"] == []
    assert result["compared"] > 100
