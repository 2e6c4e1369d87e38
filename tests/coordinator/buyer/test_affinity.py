"""How an input begins, as keys that say nothing to others."""

from coordinator.buyer.affinity import affinity_of
from protocol.generation import ChatMessage, GenerationInput
from protocol.payload import EmbeddingInput
from tests.coordinator.market_makers import key

SYSTEM = ChatMessage("system", "You are a helpful assistant. " * 50)
FIRST, ANSWER, SECOND = (
    ChatMessage("user", "What is 2 + 2?"),
    ChatMessage("assistant", "4"),
    ChatMessage("user", "And 3 + 3?"),
)


def keys(*messages: ChatMessage, session: str = "", owner: int = 1) -> tuple[bytes, ...]:
    return affinity_of(GenerationInput(messages=messages, max_tokens=1), session, key(owner))


def test_all_turns_of_a_conversation_begin_alike() -> None:
    assert keys(FIRST) == keys(FIRST, ANSWER, SECOND)
    assert keys(SYSTEM, FIRST) == keys(SYSTEM, FIRST, ANSWER, SECOND)
    assert len(keys(SYSTEM, FIRST)) == 2
    assert len(keys(FIRST)) == 1


def test_conversations_under_one_long_system_text_share_its_key_only() -> None:
    one, other = keys(SYSTEM, FIRST), keys(SYSTEM, SECOND)
    assert one[0] != other[0]
    assert one[1] == other[1]


def test_keys_are_secret_to_their_buyer() -> None:
    assert not set(keys(SYSTEM, FIRST)) & set(keys(SYSTEM, FIRST, owner=2))


def test_the_name_of_a_session_stands_for_its_conversation() -> None:
    assert keys(FIRST, session="s") == keys(SECOND, session="s")
    assert keys(FIRST, session="s") != keys(FIRST, session="t")
    assert affinity_of(EmbeddingInput(("a",)), "s", key(1)) == keys(FIRST, session="s")


def test_long_documents_are_told_apart_by_their_ends_and_sizes() -> None:
    text = "word " * 50_000
    texts = [text, "Word " + text[5:], text[:-5] + " last", text + "w"]
    assert len({keys(ChatMessage("user", each)) for each in texts}) == len(texts)
    assert keys(ChatMessage("user", text)) == keys(ChatMessage("user", text), ANSWER, SECOND)


def test_what_has_no_beginning_has_no_key() -> None:
    assert affinity_of(EmbeddingInput(("a",)), "", key(1)) == ()
    assert affinity_of(GenerationInput(prompt="Once upon a time", max_tokens=1), "", key(1)) == ()
    assert keys(SYSTEM) == ()
