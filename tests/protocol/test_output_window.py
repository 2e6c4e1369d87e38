"""What a node may send before its client has signed for what it got."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.countersigning import JobOpening, terms_of
from protocol.errors import Code, RemoteProtocolError
from protocol.output_window import UNSIGNED_WINDOWS_MAX, OutputWindow
from protocol.payload import Chunk
from protocol.windows import ClientChains, node_chain, parse_progress
from tests.protocol.makers import CLIENT, NODE, make_chain, make_opening

LEASE = make_chain().lease
TERMS = terms_of(LEASE.message)
OPENING: JobOpening = make_opening(LEASE)
CHAINS = ClientChains(CLIENT, LEASE.digest, TERMS)
INPUT_TOKENS = 9
MOST = LEASE.message.units_max.output_tokens
UNSIGNED_MAX = UNSIGNED_WINDOWS_MAX * TERMS.window_tokens


def make_window(*, is_stream: bool = True) -> OutputWindow:
    chain = node_chain(NODE, LEASE.digest, TERMS)
    window = OutputWindow(TERMS, OPENING, chain, is_stream=is_stream)
    window.accept_input(INPUT_TOKENS)
    return window


def send(window: OutputWindow, chunk: Chunk) -> tuple[list[Chunk], bytes | None]:
    """As a node's session does: what goes out, and the progress behind it."""
    if window.pass_on(len(chunk.token_ids)):
        return [chunk], None
    return window.push(chunk), window.progress_due()


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=12))
def test_output_comes_in_order_and_never_too_far_ahead_of_the_signatures(
    steps: list[tuple[int, bool]],
) -> None:
    window, made, sent, told, signed = make_window(), 0, list[int](), 0, 0

    def receive(chunks: list[Chunk], progress: bytes | None) -> None:
        nonlocal told
        sent.extend(token for chunk in chunks for token in chunk.token_ids)
        told = parse_progress(progress)[0] if progress is not None else told

    for tokens, is_signed in steps:
        wanted = min(tokens, MOST - made)
        receive(*send(window, Chunk(tuple(range(made, made + wanted)))))
        made += wanted
        while is_signed and told > signed:
            signed = told
            released = window.take(CHAINS.countersign(INPUT_TOKENS, len(sent)))
            receive(released, window.progress_due())
        assert sent == list(range(len(sent)))
        assert not sent or told == TERMS.output_index(len(sent)), "each window is told when full"
        assert len(sent) == window.sent_tokens <= TERMS.signed_output(signed) + UNSIGNED_MAX
        assert window.is_blocked == (len(sent) < made)


def test_an_answer_in_one_piece_is_neither_held_back_nor_signed_for() -> None:
    window = make_window(is_stream=False)
    assert send(window, Chunk(data=b"x" * 5_000)) == ([Chunk(data=b"x" * 5_000)], None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (CHAINS.countersign(INPUT_TOKENS + 2 * TERMS.input_step_tokens, 1), Code.UNSIGNED),
        (CHAINS.countersign(INPUT_TOKENS, 1)[:-1], Code.MALFORMED),
        (CHAINS.countersign(INPUT_TOKENS, 1)[:36] + b"\xff" * 36, Code.MALFORMED),
        (CHAINS.countersign(INPUT_TOKENS, 1)[:-1] + b"x", Code.BAD_SIGNATURE),
        (CHAINS.countersign(INPUT_TOKENS, 1)[:36] + bytes(36), Code.UNEXPECTED_FRAME),
    ],
)
def test_a_signature_that_is_not_the_one_that_is_due_is_refused(body: bytes, code: Code) -> None:
    window = make_window()
    send(window, Chunk((1,)))
    with pytest.raises(RemoteProtocolError) as caught:
        window.take(body)
    assert caught.value.code is code
