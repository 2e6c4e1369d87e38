"""Writes docs/api.md."""

from pathlib import Path

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.all_routes import make_routes
from coordinator.gateway.http.openapi.document import make_document
from coordinator.gateway.http.openapi.page import make_page

PAGE = Path(__file__).parents[4] / "docs" / "api.md"


def main() -> None:
    PAGE.write_text(make_page(make_document(make_routes(), GatewayConfig())))


if __name__ == "__main__":
    main()
