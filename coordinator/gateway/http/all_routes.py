"""Every route of the gateway: the tables of its dialects, and those that belong to none."""

from coordinator.gateway.http.account_routes import ROUTES as ACCOUNT_ROUTES
from coordinator.gateway.http.anthropic.routes import ROUTES as ANTHROPIC_ROUTES
from coordinator.gateway.http.generation_routes import ROUTES as GENERATION_ROUTES
from coordinator.gateway.http.job_routes import ROUTES as JOB_ROUTES
from coordinator.gateway.http.oip.routes import ROUTES as OIP_ROUTES
from coordinator.gateway.http.openai.routes import ROUTES as OPENAI_ROUTES
from coordinator.gateway.http.openai_responses.routes import ROUTES as RESPONSES_ROUTES
from coordinator.gateway.http.openapi.route import with_description
from coordinator.gateway.http.routes import Route
from coordinator.gateway.http.system_routes import make_system_routes


def make_routes() -> tuple[Route, ...]:
    """For one gateway: some routes remember what they answered last."""
    return with_description(
        (
            *OPENAI_ROUTES,
            *RESPONSES_ROUTES,
            *ANTHROPIC_ROUTES,
            *OIP_ROUTES,
            *GENERATION_ROUTES,
            *ACCOUNT_ROUTES,
            *JOB_ROUTES,
            *make_system_routes(),
        )
    )
