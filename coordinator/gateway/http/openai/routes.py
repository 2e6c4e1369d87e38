"""The routes of OpenAI's API. To add one that buys a job: a module with a `JobCall`, a row here."""

from coordinator.gateway.http.openai.batches import (
    cancel_batch,
    create_batch,
    list_batches,
    retrieve_batch,
)
from coordinator.gateway.http.openai.chat import read_chat
from coordinator.gateway.http.openai.completions import read_completion
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openai.embeddings import read_embedding
from coordinator.gateway.http.openai.files import (
    create_file,
    delete_file,
    list_files,
    refuse_upload,
    retrieve_content,
    retrieve_file,
)
from coordinator.gateway.http.openai.images import (
    read_classification,
    read_classification_body,
)
from coordinator.gateway.http.openai.models import list_models, retrieve_model
from coordinator.gateway.http.openai.rerank import read_rerank
from coordinator.gateway.http.openai.tokenize import read_detokenize, read_tokenize
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
    JobRoute("/v1/rerank", Task.EMBEDDING, OPENAI, read_rerank),
    # Cohere's path.
    JobRoute("/v2/rerank", Task.EMBEDDING, OPENAI, read_rerank),
    JobRoute("/v1/tokenize", Task.CAUSAL_LM, OPENAI, read_tokenize),
    JobRoute("/v1/detokenize", Task.CAUSAL_LM, OPENAI, read_detokenize),
)

_FILE = "/v1/files/{file_id}"
_BATCH = "/v1/batches/{batch_id}"

ROUTES = (
    *(route.to_route() for route in JOB_ROUTES),
    Route("GET", "/v1/models", list_models, OPENAI),
    Route("GET", "/v1/models/{model:path}", retrieve_model, OPENAI),
    Route("POST", "/v1/files", create_file, OPENAI),
    Route("GET", "/v1/files", list_files, OPENAI),
    Route("GET", _FILE, retrieve_file, OPENAI),
    Route("DELETE", _FILE, delete_file, OPENAI),
    Route("GET", f"{_FILE}/content", retrieve_content, OPENAI),
    Route("POST", "/v1/uploads", refuse_upload, OPENAI),
    Route("POST", "/v1/batches", create_batch, OPENAI),
    Route("GET", "/v1/batches", list_batches, OPENAI),
    Route("GET", _BATCH, retrieve_batch, OPENAI),
    Route("POST", f"{_BATCH}/cancel", cancel_batch, OPENAI),
)
