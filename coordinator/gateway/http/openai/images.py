"""POST /v1/images/classifications: our extension, as JSON with base64 or as a form with a file."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from coordinator.gateway.errors import ApiError, error_of, invalid
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.dialect import ChoiceAnswer, only_answer
from coordinator.gateway.http.multipart import read_form
from coordinator.gateway.http.openai.generation import FINGERPRINT_CHARS
from coordinator.gateway.http.openai.names import ROUTING_WORDS, check_names
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routing_params import read_routing, routed
from coordinator.gateway.http.strict_json import Fields, check_text, parse_object
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import PlainOrder
from protocol.codec import decode
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import LABELS_MAX, PAYLOAD_BYTES_MAX
from protocol.messages import Task
from protocol.payload import ClassificationOutput, ImageInput

# Room for the encoded input around the image.
IMAGE_BYTES_MAX = PAYLOAD_BYTES_MAX - 1_024

LABELS_DEFAULT = 5
IMAGE_WORDS = {
    **ROUTING_WORDS,
    "image": "A JPEG, PNG or WebP as base64 or a data URL; in a form, a file.",
    "top_k": f"So many of the likeliest labels. Default {LABELS_DEFAULT}.",
}

_URL_ALPHABET = str.maketrans("-_", "+/")
_DIGITS_MAX = len(str(LABELS_MAX))

# What every JPEG and every PNG starts with. The node's sandbox decodes it; this only spares it
# what cannot be one.
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class ClassificationCall:
    """A `JobCall` for the labels of a picture."""

    order: PlainOrder
    is_streamed: bool = False

    @property
    def orders(self) -> tuple[PlainOrder]:
        return (self.order,)

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        finished = only_answer(choices)
        try:
            output = decode(ClassificationOutput, finished.data)
        except RemoteProtocolError as error:
            raise error_of(error.code, str(error), is_billed=True) from error
        opened, outcome = finished.opened, finished.outcome
        answer = {
            "id": f"imgcls-{opened.info.job_id}",
            "object": "image.classification",
            "created": created_s,
            "model": opened.model_name,
            "system_fingerprint": opened.info.model_digest[:FINGERPRINT_CHARS],
            "data": [
                {"object": "label", "index": index, "label": label.label, "score": label.score}
                for index, label in enumerate(output.labels)
            ],
            "usage": {"images": outcome.units.images, "cost_nano": outcome.amount_nano},
        }
        return to_json(answer)

    def writer(self, opened: StartedAnswer, created_s: int) -> NoReturn:
        raise AssertionError("labels are not streamed")


def read_classification(fields: Fields) -> ClassificationCall:
    """Raises ApiError (400, 413)."""
    return ClassificationCall(_order(fields, _read_base64(fields)))


async def read_classification_body(context: GatewayContext, request: Request) -> ClassificationCall:
    """Raises ApiError, ClientGone."""
    if request.content_type != "multipart/form-data":
        return read_classification(await context.read_json(request))
    form = read_form(await context.read_body(request), request.header(b"content-type") or "")
    image = form.files.get("image", form.files.get("file"))
    if not image:
        why = "it has no file named image" if image is None else "its file is empty"
        raise invalid(
            f"send the image as a file in the form: {why}",
            "image",
            code="missing_required_parameter",
        )
    return ClassificationCall(_order(routed(_form_fields(form.texts), request), image))


def _order(fields: Fields, image: bytes) -> PlainOrder:
    """Raises ApiError (400, 413)."""
    check_names(fields, IMAGE_WORDS)
    routing = read_routing(fields)
    top_k = fields.integer("top_k", low=1, high=LABELS_MAX) or LABELS_DEFAULT
    if len(image) > IMAGE_BYTES_MAX:
        raise error_of(
            Code.IMAGE_TOO_LARGE, f"the image has {len(image)} bytes; we take {IMAGE_BYTES_MAX}"
        )
    if not image.startswith((_JPEG, _PNG)):
        raise error_of(Code.INVALID_IMAGE, "the image is neither a JPEG nor a PNG")
    job_input = ImageInput(image, top_k)
    return PlainOrder(Task.IMAGE_CLASSIFICATION, "image", routing, job_input, len(image))


def _form_fields(texts: dict[str, str]) -> Fields:
    """Forms know only text: numbers and objects are read as the JSON that they look like."""
    values: dict[str, object] = dict(texts)
    top_k = texts.get("top_k", "")
    # Longer numbers are no number of labels, and Python refuses to read very long ones.
    if top_k.isdecimal() and len(top_k) <= _DIGITS_MAX:
        values["top_k"] = int(top_k)
    if "provider" in texts:
        values["provider"] = _read_provider(texts["provider"])
    return Fields(values)


def _read_provider(text: str) -> dict[str, object]:
    try:
        return parse_object(text.encode())
    except ApiError as error:
        raise error.but(
            message=error.problem.message.replace("the body", "the form's provider"),
            param="provider",
        ) from None


def _read_base64(fields: Fields) -> bytes:
    """A data URL, or base64 alone."""
    text = check_text(fields.required("image"), "image")
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise _bad_base64()
    elif text.startswith(("http://", "https://")):
        raise invalid("the gateway fetches nothing: send the image itself as base64", "image")
    try:
        # White space, the alphabet for URLs and missing padding are common.
        text = "".join(text.split()).translate(_URL_ALPHABET).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_base64() from None


def _bad_base64() -> ApiError:
    return invalid("image is not base64, nor a data URL with base64", "image")
