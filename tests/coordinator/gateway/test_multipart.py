"""Forms: what is read, and what is refused."""

import httpx
import pytest

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.multipart import PARTS_MAX, TEXT_BYTES_MAX, read_form


def form(data: dict[str, str], files: dict[str, tuple[str, bytes, str]]) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", data=data, files=files)
    return request.read(), request.headers["content-type"]


def refused(body: bytes, content_type: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_form(body, content_type)
    assert caught.value.problem.status == 400
    return caught.value


PICTURE = bytes(range(256)) * 40


def test_fields_and_files_come_apart() -> None:
    body, content_type = form(
        {"model": "m", "top_k": "3"}, {"image": ("a.png", PICTURE, "image/png")}
    )
    found = read_form(body, content_type)
    assert found.texts == {"model": "m", "top_k": "3"}
    assert found.files == {"image": PICTURE}


def test_a_form_without_a_boundary_is_refused() -> None:
    body, _ = form({}, {"image": ("a", b"x", "image/png")})
    assert "boundary" in str(refused(body, "multipart/form-data"))


def test_a_form_that_ends_early_is_refused() -> None:
    body, content_type = form({"model": "m"}, {"image": ("a", PICTURE, "image/png")})
    for cut in (0, 10, len(body) // 2, len(body) - 10):
        refused(body[:cut], content_type)


def test_a_body_that_is_no_form_is_refused() -> None:
    refused(b"hello", "multipart/form-data; boundary=abc")
    refused(b"--abc\r\nbad header\r\n\r\nx\r\n--abc--\r\n", "multipart/form-data; boundary=abc")


def test_parts_are_few_and_named_and_texts_are_text() -> None:
    many = {f"f{n}": "x" for n in range(PARTS_MAX)}
    assert "more than" in str(refused(*form(many, {"image": ("a", b"x", "image/png")})))
    long = {"model": "x" * (TEXT_BYTES_MAX + 1)}
    assert "too long" in str(refused(*form(long, {"image": ("a", b"x", "image/png")})))
    head = b"--abc\r\ncontent-disposition: form-data"
    for body, words in (
        (head + b"\r\n\r\nx\r\n--abc--\r\n", "no name"),
        (head + b'; name="model"\r\n\r\n\xff\xfe\r\n--abc--\r\n', "UTF-8"),
    ):
        assert words in str(refused(body, "multipart/form-data; boundary=abc"))
