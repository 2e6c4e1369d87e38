"""Files: POST and GET /v1/files, GET and DELETE /v1/files/{id}, GET /v1/files/{id}/content."""

import asyncio

from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem, invalid, unsupported
from coordinator.gateway.http.content_reply import ContentReply
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.form_stream import FormStream
from coordinator.gateway.http.lists import AFTER, ORDER, list_response, read_part
from coordinator.gateway.http.openai.shapes import DeletedFile, FileObject
from coordinator.gateway.http.query import CountParameter, TextParameter, read_query
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.market_side.filing import FileInfo, Filing, Upload
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_ulid
from protocol.limits import MIB

FILE_PREFIX = "file-"
# What a form has around its file.
_FORM_BYTES = MIB
# OpenAI's bounds on how long a file is kept.
LIFETIME_S_MIN, LIFETIME_S_MAX = 3_600, 2_592_000
_PURPOSES = ("batch",)
_LIMIT = CountParameter("limit", "How many files.", default=10_000, high=10_000)
_PURPOSE = TextParameter("purpose", "Files of this purpose only.")
_ANCHOR = "created_at"
FILE_FORM = (
    TextParameter("purpose", "What it is for.", {"enum": list(_PURPOSES)}, is_required=True),
    TextParameter("expires_after[anchor]", "From when its time counts.", {"enum": [_ANCHOR]}),
    TextParameter(
        "expires_after[seconds]",
        "How long it is kept.",
        {"type": "integer", "minimum": LIFETIME_S_MIN, "maximum": LIFETIME_S_MAX},
    ),
)
FILES_QUERY = (_LIMIT, ORDER, AFTER, _PURPOSE)
# One crossing into a thread for so many bytes.
_WRITE_BYTES = 512 * 1024
FILENAME_CHARS_MAX = 255


async def create_file(context: GatewayContext, request: Request) -> Reply:
    """Takes a file for a batch, of up to 200 MB. Raises ApiError, ClientGone."""
    filing = filing_of(context)
    if request.content_type != "multipart/form-data":
        raise invalid("send the file as a form: multipart/form-data", "file", code="invalid_form")
    receiving = _Receiving(context, filing, caller_of(request), request)
    try:
        await receiving.read_all()
        # The body may have taken minutes: the key may have been revoked meanwhile.
        await context.identify(request)
        return json_response(file_object(await receiving.finish()))
    finally:
        if receiving.upload is not None:
            # Also of a client that has hung up.
            await asyncio.shield(context.bridge.call(filing.abandon_upload, receiving.upload))


async def list_files(context: GatewayContext, request: Request) -> Reply:
    """The account's files."""
    query = read_query(request)
    part = read_part(query, _LIMIT, read_id=_read_id)
    filing, caller = filing_of(context), caller_of(request)
    files = await context.bridge.call(filing.list_files, caller, part, query.get(_PURPOSE.name))
    return list_response(part, files, file_object)


async def retrieve_file(context: GatewayContext, request: Request) -> Reply:
    """What is known of a file."""
    return json_response(file_object(await _find(context, request)))


async def delete_file(context: GatewayContext, request: Request) -> Reply:
    """Deletes a file."""
    info = await _find(context, request)
    filing = filing_of(context)
    if not await context.bridge.call(filing.delete_file, caller_of(request), info.id):
        raise _no_file(FILE_PREFIX + info.id)
    answer: DeletedFile = {"id": FILE_PREFIX + info.id, "object": "file", "deleted": True}
    return json_response(answer)


async def retrieve_content(context: GatewayContext, request: Request) -> Reply:
    """The bytes of a file, or those of a Range."""
    info = await _find(context, request)
    content = await context.bridge.call(filing_of(context).open_file, caller_of(request), info.id)
    if content is None:
        raise _no_file(FILE_PREFIX + info.id)
    return ContentReply(content, info.filename, request.header(b"range"))


async def refuse_upload(_context: GatewayContext, _request: Request) -> Reply:
    """Refused: uploads in parts are not supported."""
    raise ApiError(
        Problem(
            400,
            "uploads in parts are not supported: send the whole file, of up to 200 MB, to "
            "POST /v1/files",
            code="unsupported_endpoint",
        )
    )


def filing_of(context: GatewayContext) -> Filing:
    """Raises ApiError (404) where there is none."""
    if context.filing is None:
        raise ApiError(
            Problem(
                404,
                "this gateway keeps no files and runs no batches: use the coordinator's own, or "
                "`coordinator batch run`",
                code="unsupported_endpoint",
            )
        )
    return context.filing


def caller_of(request: Request) -> Caller:
    assert request.caller is not None, "only callers have files"
    return request.caller


def file_object(info: FileInfo) -> FileObject:
    return {
        "id": FILE_PREFIX + info.id,
        "object": "file",
        "bytes": info.bytes,
        "created_at": info.created_at_ms // 1_000,
        "expires_at": info.expires_at_ms // 1_000,
        "filename": info.filename,
        "purpose": info.purpose,
        "status": "processed",
        "status_details": None,
    }


def read_file_id(text: str, param: str) -> str:
    """The id without its prefix. Raises ApiError (404)."""
    try:
        return str(parse_ulid(text.removeprefix(FILE_PREFIX)))
    except RemoteProtocolError:
        raise _no_file(text, param) from None


class _Receiving:
    """One form with a file, while it arrives."""

    def __init__(
        self, context: GatewayContext, filing: Filing, caller: Caller, request: Request
    ) -> None:
        self.upload: Upload | None = None
        self._context = context
        self._filing = filing
        self._caller = caller
        self._request = request
        self._form = FormStream(request.header(b"content-type") or "")
        self._filename = ""
        self._pending = bytearray()

    async def read_all(self) -> None:
        """Raises ApiError, ClientGone."""
        bytes_max = self._filing.file_bytes_max + _FORM_BYTES
        async for piece in self._request.pieces(bytes_max=bytes_max):
            for part in self._form.feed(piece):
                if part.name != "file":
                    raise invalid(f"the form has no use for a file named {part.name[:64]}", "file")
                if self.upload is None:
                    self._filename = part.filename[:FILENAME_CHARS_MAX]
                    self.upload = await self._context.bridge.call(
                        self._filing.begin_upload, self._caller
                    )
                self._pending += part.data
                if len(self._pending) >= _WRITE_BYTES:
                    await self._write()
        self._form.finish()
        await self._write()

    async def finish(self) -> FileInfo:
        """Raises ApiError."""
        texts = self._form.texts
        if self.upload is None:
            raise invalid("the form has no file", "file", code="missing_required_parameter")
        if "purpose" not in texts:
            raise invalid("you must give purpose", "purpose", code="missing_required_parameter")
        if texts["purpose"] not in _PURPOSES:
            raise unsupported(f"purpose is {' or '.join(_PURPOSES)}", "purpose")
        lifetime_s = _read_lifetime(texts)
        filing, upload = self._filing, self.upload

        async def finish() -> FileInfo:
            return await filing.finish_upload(
                self._caller,
                upload,
                filename=self._filename,
                purpose=texts["purpose"],
                lifetime_s=lifetime_s,
            )

        return await self._context.bridge.call(finish)

    async def _write(self) -> None:
        if self.upload is not None and self._pending:
            data, self._pending = bytes(self._pending), bytearray()
            await asyncio.to_thread(self.upload.write, data)


def _read_lifetime(texts: dict[str, str]) -> int | None:
    if texts.get("expires_after[anchor]", _ANCHOR) != _ANCHOR:
        raise invalid(f"expires_after.anchor is {_ANCHOR}", "expires_after.anchor")
    text = texts.get("expires_after[seconds]")
    if text is None:
        return None
    if not text.isdecimal() or not LIFETIME_S_MIN <= int(text[:9]) <= LIFETIME_S_MAX:
        raise invalid(
            f"expires_after.seconds lies between {LIFETIME_S_MIN} and {LIFETIME_S_MAX}",
            "expires_after.seconds",
        )
    return int(text[:9])


async def _find(context: GatewayContext, request: Request) -> FileInfo:
    """Raises ApiError (404)."""
    text = request.parameters["file_id"]
    file_id = read_file_id(text, "file_id")
    info = await context.bridge.call(filing_of(context).find_file, caller_of(request), file_id)
    if info is None:
        raise _no_file(text)
    return info


def _read_id(text: str) -> str:
    return read_file_id(text, "after")


def _no_file(text: str, param: str = "file_id") -> ApiError:
    message = f"no file of yours is called {text[:64]!r}"
    return ApiError(Problem(404, message, code="not_found", param=param))
