"""What the routes of models, files and batches answer with, as GET /openapi.json describes it."""

from typing import Annotated, Any, Literal, TypedDict

Seconds = Annotated[int, "seconds since 1970"]


class Architecture(TypedDict):
    modality: str
    input_modalities: list[str]
    output_modalities: list[str]


class TopProvider(TypedDict):
    context_length: int | None
    max_completion_tokens: None


_NanoPrices = Annotated[dict[str, int], "nano-credits by what is counted"]
# `from` is a word of Python's own.
PriceRange = TypedDict("PriceRange", {"from": _NanoPrices, "to": _NanoPrices})


class ModelObject(TypedDict):
    """OpenAI's four fields, vLLM's `max_model_len`, OpenRouter's from `context_length` on, and
    ours."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None
    name: str
    context_length: Annotated[int | None, "tokens"]
    architecture: Architecture
    pricing: Annotated[dict[str, str], "credits for one, of the cheapest node, as decimal texts"]
    top_provider: TopProvider
    supported_parameters: list[str]
    task: str
    capabilities: list[str]
    dimensions: Annotated[int | None, "of an embedding"]
    quantization: str
    quantizations: list[str]
    manifest_digest: str
    nodes: Annotated[int, "that offer it now"]
    price_nano: PriceRange


class ModelsAnswer(TypedDict):
    object: Literal["list"]
    data: list[ModelObject]


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: bool


class BatchProblem(TypedDict):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchProblems(TypedDict):
    object: Literal["list"]
    data: list[BatchProblem]


class BatchCounts(TypedDict):
    total: int
    completed: int
    failed: int


class BatchUsage(TypedDict):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int
    cost_nano: int


class BatchObject(TypedDict):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: None
    errors: BatchProblems | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: Seconds
    expires_at: Seconds
    in_progress_at: Seconds | None
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class ListPage(TypedDict):
    object: Literal["list"]
    data: list[Any]
    first_id: str | None
    last_id: Annotated[str | None, "`after` of the next page"]
    has_more: bool


class FilesPage(ListPage):
    data: list[FileObject]


class BatchesPage(ListPage):
    data: list[BatchObject]
