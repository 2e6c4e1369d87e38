"""The routes of OpenAI's API. To add one that buys a job: a module with a `JobCall`, a row here."""

from coordinator.gateway.http.openai.chat import read_chat
from coordinator.gateway.http.openai.completions import read_completion
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openai.embeddings import read_embedding
from coordinator.gateway.http.openai.images import (
    read_classification,
    read_classification_body,
)
from coordinator.gateway.http.openai.models import list_models, retrieve_model
from coordinator.gateway.http.routes import JobRoute, Route
from protocol.messages import Task

JOB_ROUTES = (
    JobRoute("/v1/chat/completions", Task.CAUSAL_LM, OPENAI, read_chat),
    JobRoute("/v1/completions", Task.CAUSAL_LM, OPENAI, read_completion),
    JobRoute("/v1/embeddings", Task.EMBEDDING, OPENAI, read_embedding),
    JobRoute(
        "/v1/images/classifications",
        Task.IMAGE_CLASSIFICATION,
        OPENAI,
        read_classification,
        read_body=read_classification_body,
    ),
)

ROUTES = (
    *(route.to_route() for route in JOB_ROUTES),
    Route("GET", "/v1/models", list_models, OPENAI),
    Route("GET", "/v1/models/{model:path}", retrieve_model, OPENAI),
)
