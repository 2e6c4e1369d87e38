import pytest

from protocol.errors import RETRYABLE_ELSEWHERE, RETRYABLE_LATER, Code, may_succeed_elsewhere


def test_a_listed_word_is_the_member() -> None:
    assert Code("busy") is Code.BUSY
    assert Code.BUSY.is_known


def test_another_word_is_passed_on_as_it_is() -> None:
    code = Code("moon_phase")
    assert isinstance(code, Code)
    assert (code, str(code), f"{code}", code.value) == ("moon_phase",) * 4
    assert not code.is_known
    assert code == Code("moon_phase")
    assert hash(code) == hash(Code("moon_phase"))


def test_peers_cannot_make_the_vocabulary_grow() -> None:
    listed = list(Code)
    Code("moon_phase")
    assert list(Code) == listed
    assert "moon_phase" not in listed


def test_a_word_of_a_later_version_is_no_reason_to_ask_the_same_party_again() -> None:
    assert Code("moon_phase") not in RETRYABLE_ELSEWHERE | RETRYABLE_LATER
    assert may_succeed_elsewhere(Code("moon_phase"))
    assert not may_succeed_elsewhere(Code.INVALID_INPUT)


@pytest.mark.parametrize("text", ["", "Moon", "moon phase", "moon\n", "m" * 65, "7moon"])
def test_text_that_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Code"):
        Code(text)
