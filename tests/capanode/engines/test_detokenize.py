"""Text comes out whole, once, and never beyond a stop string, however tokens cut it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from capanode.engines.base import ModelLoadError
from capanode.engines.detokenize import AnswerText, TokenBytes
from capanode.engines.tokenizer import load_tokenizer
from tests.capanode.engines.tiny_models import END, USER, write_tokenizer


@pytest.fixture(scope="module")
def token_bytes(tmp_path_factory: pytest.TempPathFactory) -> TokenBytes:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return TokenBytes(load_tokenizer(folder))


def read(answer: AnswerText, tokens: list[int]) -> str:
    return "".join(answer.push(token) for token in tokens)


def expected_text(text: str, stops: list[str]) -> str:
    """Up to the place where a stop string is first complete, without it."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.text())
def test_every_character_comes_out_whole_and_once(token_bytes: TokenBytes, text: str) -> None:
    answer = AnswerText(token_bytes, ())
    pieces = [answer.push(token) for token in text.encode()]
    assert "".join(pieces) + answer.finish() == text
    assert "\ufffd" not in "".join(pieces).replace("\ufffd", "", text.count("\ufffd"))


@given(st.text("ab€", max_size=12), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_complete_stop_string(
    token_bytes: TokenBytes, text: str, stops: list[str]
) -> None:
    answer = AnswerText(token_bytes, stops)
    seen = ""
    for token in text.encode():
        seen += answer.push(token)
        assert expected_text(text, stops).startswith(seen)
        if answer.is_stopped:
            break
    assert seen + answer.finish() == expected_text(text, stops)
    assert answer.is_stopped == any(stop in text for stop in stops)


def test_invalid_bytes_become_replacement_characters_and_the_next_text_is_fine(
    token_bytes: TokenBytes,
) -> None:
    assert read(AnswerText(token_bytes, ()), [0xFF, *b"a", 0xE2, 0x82, *b"b"]) == "\ufffda\ufffdb"


def test_special_and_unnamed_tokens_have_no_text(token_bytes: TokenBytes) -> None:
    assert read(AnswerText(token_bytes, ()), [*b"a", END, USER, 300, 10_000, *b"b"]) == "ab"


def test_the_longest_token_counts_special_ones(token_bytes: TokenBytes) -> None:
    assert token_bytes.longest == len("<|user|>")


def sentence_piece(tmp_path: Path) -> TokenBytes:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    plain = json.loads(path.read_text())
    words = ["▁Hello", "▁world", "!", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    plain["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    plain["added_tokens"] = []
    plain["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    path.write_text(json.dumps(plain))
    return TokenBytes(load_tokenizer(tmp_path))


def test_sentence_pieces_lose_only_the_first_space(tmp_path: Path) -> None:
    answer = AnswerText(sentence_piece(tmp_path), ())
    pieces = [answer.push(token) for token in (0, 1, 2, 3, 4, 5, 6, 1)]
    assert pieces == ["Hello", " world", "!", "", "", "", "😀", " world"]


def test_a_tokenizer_that_spells_otherwise_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path.write_text(json.dumps(plain))
    with pytest.raises(ModelLoadError, match="decoder"):
        TokenBytes(load_tokenizer(tmp_path))
    plain["decoder"] = None
    path.write_text(json.dumps(plain))
    with pytest.raises(ModelLoadError, match="decoder"):
        TokenBytes(load_tokenizer(tmp_path))


@pytest.mark.models
def test_smollm_text_survives_the_round_trip(demo_models: Callable[[str], Path]) -> None:
    tokenizer: Tokenizer = load_tokenizer(demo_models("smollm2-135m-instruct"))
    text = "Naïve café: 25 °C, 日本語, 👩‍👩‍👧 and\tcode {x}\n\n  indented"
    answer = AnswerText(TokenBytes(tokenizer), ())
    assert read(answer, tokenizer.encode(text).ids) == text
