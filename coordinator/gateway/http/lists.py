"""Lists that are read page by page, in OpenAI's shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from coordinator.gateway.errors import invalid
from coordinator.gateway.http.openai.shapes import ListPage
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Response, json_response
from coordinator.gateway.market_side.filing import ListPart

T = TypeVar("T")

_PARAMETERS_MAX = 32
_ORDERS = {"asc": True, "desc": False}


def read_query(request: Request) -> Mapping[str, str]:
    """The parameters behind the path; of one that comes twice, the last. Raises ApiError (400)."""
    text = bytes(request.scope.get("query_string", b"")).decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX))
    except ValueError:
        raise invalid("the query has too many parameters", None) from None


def read_part(
    query: Mapping[str, str], *, limit_default: int, limit_max: int, read_id: Callable[[str], str]
) -> ListPart:
    """One more than asked for, which says whether there are more. Raises ApiError (400)."""
    text = query.get("limit", str(limit_default))
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= limit_max:
        raise invalid(f"limit lies between 1 and {limit_max}", "limit")
    order = query.get("order", "desc")
    if order not in _ORDERS:
        raise invalid("order is asc or desc", "order")
    after = query.get("after")
    return ListPart(int(text) + 1, None if after is None else read_id(after), _ORDERS[order])


def list_response(
    part: ListPart, items: Sequence[T], write: Callable[[T], Mapping[str, Any]]
) -> Response:
    data = [write(item) for item in items[: part.limit - 1]]
    answer: ListPage = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) >= part.limit,
    }
    return json_response(answer)
