"""Lists that are read page by page, in OpenAI's shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from coordinator.gateway.errors import invalid
from coordinator.gateway.http.openai.shapes import ListPage
from coordinator.gateway.http.query import CountParameter, TextParameter
from coordinator.gateway.http.responses import Response, json_response
from coordinator.gateway.market_side.filing import ListPart

T = TypeVar("T")

_ORDERS = {"asc": True, "desc": False}

ORDER = TextParameter("order", "By age; the newest first by default.", {"enum": list(_ORDERS)})
AFTER = TextParameter("after", "The id of the last one before the page.")


def read_part(
    query: Mapping[str, str], limit: CountParameter, *, read_id: Callable[[str], str]
) -> ListPart:
    """One more than asked for, which says whether there are more. Raises ApiError (400)."""
    order = query.get(ORDER.name, "desc")
    if order not in _ORDERS:
        raise invalid("order is asc or desc", "order")
    after = query.get(AFTER.name)
    return ListPart(
        limit.read(query) + 1, None if after is None else read_id(after), _ORDERS[order]
    )


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
