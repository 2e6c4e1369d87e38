import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, LocalProtocolError, RemoteProtocolError
from protocol.framing import HEADER, VERSION, Frame, FrameDecoder, FrameType, encode_frame
from protocol.limits import FRAME_BYTES_MAX

frames = st.builds(
    Frame,
    st.sampled_from(FrameType),
    st.integers(min_value=0, max_value=2**32 - 1),
    st.binary(max_size=64),
)


def decode_all(decoder: FrameDecoder) -> list[Frame]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


def refused(data: bytes) -> Code:
    decoder = FrameDecoder()
    decoder.feed(data)
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.next_frame()
    return caught.value.code


@given(st.lists(frames, max_size=8), st.lists(st.integers(min_value=1, max_value=50)))
def test_frames_survive_any_cutting_of_the_stream(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(encode_frame, sent))
    decoder, received, start = FrameDecoder(), [], 0
    for size in [*cuts, len(data)]:
        decoder.feed(data[start : start + size])
        received += decode_all(decoder)
        start += size
    decoder.feed(data[start:])
    received += decode_all(decoder)
    decoder.end()
    assert received == sent


@given(st.binary(max_size=100))
def test_random_bytes_never_crash_the_decoder(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    try:
        decode_all(decoder)
        decoder.end()
    except RemoteProtocolError:
        return


def test_an_end_inside_a_frame_is_truncation() -> None:
    whole = encode_frame(Frame(FrameType.EVENT, 1, b"abc"))
    for size in range(1, len(whole)):
        decoder = FrameDecoder()
        decoder.feed(whole[:size])
        assert decoder.next_frame() is None
        with pytest.raises(RemoteProtocolError) as caught:
            decoder.end()
        assert caught.value.code is Code.TRUNCATED


def test_another_version_is_named() -> None:
    assert refused(HEADER.pack(VERSION + 1, FrameType.EVENT, 0, 0)) is Code.UNKNOWN_VERSION


def test_a_type_of_a_later_version_leaves_the_stream_readable() -> None:
    decoder = FrameDecoder()
    decoder.feed(
        HEADER.pack(VERSION, 200, 7, 2) + b"??" + encode_frame(Frame(FrameType.CLOSE, 7, b""))
    )
    assert decoder.next_frame() == Frame(FrameType.UNKNOWN, 7, b"??")
    assert decoder.next_frame() == Frame(FrameType.CLOSE, 7, b"")


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    header = HEADER.pack(VERSION, FrameType.EVENT, 0, FRAME_BYTES_MAX + 1)
    assert refused(header) is Code.FRAME_TOO_LARGE


def test_sending_an_oversized_frame_is_our_own_bug() -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame(Frame(FrameType.EVENT, 0, b"x" * (FRAME_BYTES_MAX + 1)))
