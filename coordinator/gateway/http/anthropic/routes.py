"""The routes of Anthropic's API."""

from coordinator.gateway.http.anthropic.answers import read_message, read_token_count
from coordinator.gateway.http.anthropic.dialect import ANTHROPIC
from coordinator.gateway.http.routes import JobRoute
from protocol.messages import Task

JOB_ROUTES = (
    JobRoute("/v1/messages", Task.CAUSAL_LM, ANTHROPIC, read_message),
    JobRoute("/v1/messages/count_tokens", Task.CAUSAL_LM, ANTHROPIC, read_token_count),
)

ROUTES = tuple(route.to_route() for route in JOB_ROUTES)
