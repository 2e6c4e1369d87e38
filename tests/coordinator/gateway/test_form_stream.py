"""A form that is read as it arrives says what the same form says when it is read whole."""

import random

import pytest

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.form_stream import FormStream
from coordinator.gateway.http.multipart import read_form

TYPE = "multipart/form-data; boundary=xYz"
DATA = b"line\r\n--xY\r\n--xYzz is data\r\n-" * 40 + b"\r\n--xY"
FORM = (
    b"preamble\r\n--xYz\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
    b'--xYz  \r\ncontent-disposition: form-data; name=file; filename="a b.jsonl"\r\n'
    b"content-type: application/jsonl\r\n\r\n"
    + DATA.replace(b"--xYzz", b"--xYyz")
    + b"\r\n--xYz\r\ncontent-disposition: form-data; name=empty\r\n\r\n\r\n--xYz--\r\nepilogue"
)


def read_in_pieces(form: bytes, cuts: list[int]) -> tuple[dict[str, str], dict[str, bytes]]:
    stream = FormStream(TYPE)
    files: dict[str, bytes] = {}
    for start, end in zip([0, *cuts], [*cuts, len(form)], strict=True):
        for part in stream.feed(form[start:end]):
            files[part.name] = files.get(part.name, b"") + part.data
    stream.finish()
    return stream.texts, files


def test_it_does_not_matter_how_a_form_arrives() -> None:
    whole = read_form(FORM, TYPE)
    rng = random.Random(4)
    ways = [[], list(range(1, len(FORM)))]
    ways += [sorted(rng.sample(range(1, len(FORM)), 5)) for _ in range(200)]
    for cuts in ways:
        texts, files = read_in_pieces(FORM, cuts)
        assert (texts, files) == (whole.texts, whole.files)


@pytest.mark.parametrize("end", range(0, len(FORM) - 11, 7))
def test_a_form_that_is_cut_anywhere_is_no_form(end: int) -> None:
    with pytest.raises(ApiError):
        read_in_pieces(FORM[:end], [])


def test_what_is_not_the_file_is_bounded() -> None:
    stream = FormStream(TYPE)
    stream.feed(b"--xYz\r\ncontent-disposition: form-data; name=purpose\r\n\r\n")
    with pytest.raises(ApiError, match="too long"):
        stream.feed(bytes(100_000))
    with pytest.raises(ApiError, match="no head"):
        FormStream(TYPE).feed(b"--xYz\r\n" + b"x-header: y\r\n" * 1_000)
