"""What the account's routes answer with. GET /openapi.json describes these types, so a field's unit
stands in its name or beside its type."""

from typing import Annotated, Literal, NotRequired, TypedDict

Credits = Annotated[float, "credits; the exact amount stands beside it in nano-credits"]
NanoPrices = Annotated[dict[str, int], "nano-credits by what is counted"]
Base64 = Annotated[str, "a signed message, in base64"]


class RateLimit(TypedDict):
    requests: Annotated[int, "-1 where there is no limit"]
    interval: str


class Key(TypedDict):
    label: str
    usage: Credits
    limit: Credits | None
    limit_remaining: Credits | None
    limit_reset: None
    is_free_tier: bool
    rate_limit: RateLimit
    id: str
    account: Annotated[str, "the peer id that pays"]
    created_at: Annotated[int, "seconds since 1970"]
    usage_nano: int
    held_nano: int
    limit_nano: int | None


class KeyAnswer(TypedDict):
    data: Key


class Credit(TypedDict):
    total_credits: Credits
    total_usage: Credits
    account: Annotated[str, "the peer id that pays"]
    available_nano: int
    held_nano: int
    total_credits_nano: int
    total_usage_nano: int


class CreditAnswer(TypedDict):
    data: Credit


class DayUsage(TypedDict):
    date: Annotated[str, "a day in UTC, such as 2026-11-27"]
    model: str
    model_digest: str
    requests: int
    usage: Credits
    amount_nano: int
    prompt_tokens: int
    cached_tokens: Annotated[int, "of `prompt_tokens`"]
    completion_tokens: int
    images: int
    tensor_elements: int


class UsageAnswer(TypedDict):
    object: Literal["list"]
    data: list[DayUsage]
    has_more: bool


class PlainJob(TypedDict):
    id: str
    object: Literal["job"]
    model: str
    model_digest: str
    task: str
    state: str
    created_at_ms: int
    ended_at_ms: int | None
    error_code: str | None
    amount_nano: int
    input_tokens: int
    cached_tokens: Annotated[int, "of `input_tokens`"]
    output_tokens: int
    images: int
    tensor_elements: int


class PlainAttempt(TypedDict):
    attempt: int
    node: str
    lease_id: str
    state: str
    finish: str | None
    code: Annotated[str | None, "why the attempt ended without an answer"]
    price_nano: NanoPrices
    ceiling_nano: int
    amount_nano: int
    input_tokens: int
    cached_tokens: Annotated[int, "of `input_tokens`"]
    output_tokens: int
    created_at_ms: int
    ended_at_ms: int | None
    queued_ms: int
    first_output_ms: int
    total_ms: int
    receipt: Annotated[str | None, "the receipt's digest"]
    receipt_state: str | None


class JobAnswer(PlainJob):
    attempts: list[PlainAttempt]


class JobsAnswer(TypedDict):
    object: Literal["list"]
    data: list[PlainJob]
    has_more: bool
    next_before: Annotated[str | None, "`before` of the next page"]


class EvidenceAnswer(TypedDict):
    format: str
    request: NotRequired[Base64]
    lease: NotRequired[Base64]
    receipt: NotRequired[Base64]
    acceptance: NotRequired[Base64]
    delivery: NotRequired[Base64]


class GenerationObject(TypedDict):
    id: str
    model: str
    model_digest: str
    created_at: Annotated[str, "a time in UTC (ISO 8601)"]
    provider_name: Annotated[str | None, "the node of the last attempt"]
    finish_reason: str | None
    native_finish_reason: str | None
    cancelled: bool
    tokens_prompt: int
    tokens_completion: int
    native_tokens_prompt: int
    native_tokens_cached: int
    native_tokens_completion: int
    num_media_prompt: int
    latency: Annotated[int | None, "milliseconds to the first output"]
    generation_time: Annotated[int | None, "milliseconds at the node"]
    usage: Credits
    total_cost: Credits
    amount_nano: int
    state: str
    error_code: str | None
    timings_ms: Annotated[dict[str, float], "by stage; empty once this gateway forgot them"]
    attempts: list[PlainAttempt]
    receipts: Annotated[list[str], "digests"]
    job: PlainJob


class GenerationAnswer(TypedDict):
    data: GenerationObject
