"""The routes of OpenAI's API. To add one that buys a job: a module with a `JobCall`, a row here."""

from coordinator.gateway.http.openai.batches import (
    BATCHES_QUERY,
    cancel_batch,
    create_batch,
    list_batches,
    read_ask,
    retrieve_batch,
)
from coordinator.gateway.http.openai.chat import read_chat
from coordinator.gateway.http.openai.completions import read_completion
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openai.embeddings import read_embedding
from coordinator.gateway.http.openai.files import (
    FILE_FORM,
    FILES_QUERY,
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
from coordinator.gateway.http.openai.shapes import (
    BatchesPage,
    BatchObject,
    DeletedFile,
    FileObject,
    FilesPage,
    ModelObject,
    ModelsAnswer,
)
from coordinator.gateway.http.openai.tokenize import read_detokenize, read_tokenize
from coordinator.gateway.http.routes import AnswerShape, JobRoute, Route
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

_FILE_ANSWER = AnswerShape(FileObject)
_BATCH_ANSWER = AnswerShape(BatchObject)
_CONTENT = AnswerShape(content_type="application/octet-stream", statuses=(200, 206))

_FILE_ROUTES = (
    Route("POST", "/v1/files", create_file, OPENAI, form=FILE_FORM, answer=_FILE_ANSWER),
    Route(
        "GET",
        "/v1/files",
        list_files,
        OPENAI,
        query=FILES_QUERY,
        answer=AnswerShape(FilesPage),
    ),
    Route("GET", _FILE, retrieve_file, OPENAI, answer=_FILE_ANSWER),
    Route("DELETE", _FILE, delete_file, OPENAI, answer=AnswerShape(DeletedFile)),
    Route("GET", f"{_FILE}/content", retrieve_content, OPENAI, answer=_CONTENT),
    Route("POST", "/v1/uploads", refuse_upload, OPENAI),
)

_BATCH_ROUTES = (
    Route("POST", "/v1/batches", create_batch, OPENAI, read=read_ask, answer=_BATCH_ANSWER),
    Route(
        "GET",
        "/v1/batches",
        list_batches,
        OPENAI,
        query=BATCHES_QUERY,
        answer=AnswerShape(BatchesPage),
    ),
    Route("GET", _BATCH, retrieve_batch, OPENAI, answer=_BATCH_ANSWER),
    Route("POST", f"{_BATCH}/cancel", cancel_batch, OPENAI, answer=_BATCH_ANSWER),
)

ROUTES = (
    *(route.to_route() for route in JOB_ROUTES),
    Route("GET", "/v1/models", list_models, OPENAI, answer=AnswerShape(ModelsAnswer)),
    Route(
        "GET", "/v1/models/{model:path}", retrieve_model, OPENAI, answer=AnswerShape(ModelObject)
    ),
    *_FILE_ROUTES,
    *_BATCH_ROUTES,
)
