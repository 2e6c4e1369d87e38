"""The description of the API, as tests hold answers against it: with the fields that are described
and no others, so that a new field is described, too."""

import copy
from typing import Any

import schemathesis

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.all_routes import make_routes
from coordinator.gateway.http.openapi.document import make_document

ROUTES = make_routes()
DOCUMENT = make_document(ROUTES, GatewayConfig())


def _closed() -> dict[str, Any]:
    """Errors stay open: a few have fields of their own."""
    document = copy.deepcopy(DOCUMENT)
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Error"):
            schema["additionalProperties"] = False
    for methods in document["paths"].values():
        for operation in methods.values():
            # It describes the whole text; schemathesis takes it for the shape of one event.
            content = operation["responses"].get("200", {}).get("content", {})
            content.pop("text/event-stream", None)
    return document


OPERATIONS = {
    (operation.method.upper(), operation.path): operation
    for operation in (
        found.ok() for found in schemathesis.openapi.from_dict(_closed()).get_all_operations()
    )
}
