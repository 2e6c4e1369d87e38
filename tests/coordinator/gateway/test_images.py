"""POST /v1/images/classifications: our extension."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.http.openai.images import IMAGE_BYTES_MAX
from protocol.errors import Code
from protocol.messages import Objective
from protocol.payload import ImageInput
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import error_of

PATH = "/v1/images/classifications"


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


PNG = picture()


def body(image: object = None, **more: Any) -> dict[str, Any]:
    encoded = base64.b64encode(PNG).decode() if image is None else image
    return {"model": "tiny/classifier", "image": encoded, **more}


def asked(gateway: Harness) -> ImageInput:
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, ImageInput)
    return job_input


def test_json_with_base64(gateway: Harness) -> None:
    answer = gateway.post(PATH, body()).json()
    assert answer["object"] == "image.classification"
    assert [(item["label"], item["score"]) for item in answer["data"]] == [
        ("military uniform", 0.75),
        ("bow tie", 0.125),
    ]
    assert answer["usage"] == {"images": 1, "cost_nano": 5_000}
    assert asked(gateway) == ImageInput(PNG, 5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_data_url(gateway: Harness, kind: str) -> None:
    image = picture(kind)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(image).decode()}"
    assert gateway.post(PATH, body(url, top_k=1)).status_code == 200
    assert asked(gateway) == ImageInput(image, 1)


@pytest.mark.parametrize("name", ["image", "file"])
def test_a_form_with_a_file(gateway: Harness, name: str) -> None:
    response = gateway.request(
        "POST",
        PATH,
        data={"model": "tiny/classifier", "top_k": "2", "provider": '{"sort": "price"}'},
        files={name: ("p.png", PNG, "image/png")},
    )
    assert response.status_code == 200
    assert asked(gateway) == ImageInput(PNG, 2)
    assert gateway.market.specs[-1].objective is Objective.PRICE


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        (body("%%%"), "image"),
        (body("abc"), "image"),
        (body(""), "image"),
        (body(5), "image"),
        (body("data:image/png,abc"), "image"),
        (body("https://example.com/cat.png"), "image"),
        (body(top_k=0), "top_k"),
        (body(top_k=5_000), "top_k"),
        ({"model": "tiny/classifier"}, "image"),
        (body(model=None), "model"),
    ],
)
def test_bad_input_is_refused_by_name(
    gateway: Harness, request_body: dict[str, Any], param: str
) -> None:
    response = gateway.post(PATH, request_body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []


def test_what_is_no_image_is_refused_before_anything_is_bought(gateway: Harness) -> None:
    response = gateway.post(PATH, body(base64.b64encode(b"GIF89a and so on").decode()))
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_image"
    assert gateway.market.specs == []


def test_a_huge_image_is_413(gateway: Harness) -> None:
    image = PNG + bytes(IMAGE_BYTES_MAX)
    response = gateway.post(PATH, body(base64.b64encode(image).decode()))
    assert response.status_code == 413
    assert error_of(response)["code"] == "image_too_large"
    response = gateway.request(
        "POST",
        PATH,
        data={"model": "tiny/classifier"},
        files={"image": ("p.png", image, "image/png")},
    )
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("code", "status"),
    [(Code.INVALID_IMAGE, 400), (Code.IMAGE_TOO_LARGE, 413), (Code.OUT_OF_MEMORY, 503)],
)
def test_what_the_sandbox_finds_out_is_mapped(gateway: Harness, code: Code, status: int) -> None:
    gateway.market.script = Script(failure=JobFailed("truncated file", code=code))
    response = gateway.post(PATH, body())
    assert response.status_code == status
    if status < 500:
        assert error_of(response)["param"] == "image"


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"model": "tiny/classifier"}, {"picture": ("p", PNG, "image/png")}, "image"),
        ({}, {"image": ("p", PNG, "image/png")}, "model"),
        (
            {"model": "tiny/classifier", "top_k": "many"},
            {"image": ("p", PNG, "image/png")},
            "top_k",
        ),
        (
            {"model": "tiny/classifier", "top_k": "1" * 5_000},
            {"image": ("p", PNG, "image/png")},
            "top_k",
        ),
        (
            {"model": "tiny/classifier", "provider": "{"},
            {"image": ("p", PNG, "image/png")},
            "provider",
        ),
    ],
)
def test_bad_forms_are_refused_by_name(
    gateway: Harness, data: dict[str, str], files: dict[str, Any], param: str | None
) -> None:
    response = gateway.request("POST", PATH, data=data, files=files)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    "write",
    [
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n",
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: f"DATA:image/png;BASE64,{text}",
    ],
)
def test_base64_as_common_tools_write_it(gateway: Harness, write: Any) -> None:
    image = PNG + b"\xfb\xef\xff" * 99 + b"x"
    response = gateway.post(PATH, body(write(base64.b64encode(image).decode())))
    assert response.status_code == 200
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, ImageInput)
    assert job_input.image == image
