"""What chat and completions share: a parsed request for text, its answer and its events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.chat.answer import AnswerParts, read_answer
from coordinator.gateway.chat.ending import stop_of
from coordinator.gateway.chat.events import AnswerEvent, TextDelta
from coordinator.gateway.chat.parser import AnswerParser, parser_of
from coordinator.gateway.errors import ApiError, Problem, error_of
from coordinator.gateway.http.dialect import ChoiceAnswer
from coordinator.gateway.http.openai.dialect import OPENAI, error_object
from coordinator.gateway.http.openai.forms import ChoiceForm, FormNames
from coordinator.gateway.http.openai.sampling import Streaming
from coordinator.gateway.http.openai.sse import ChoiceEvents, Envelope, closing_events
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer
from coordinator.gateway.orders import GenerationOrder
from protocol.endings import API_FINISH_REASONS
from protocol.errors import RemoteProtocolError
from protocol.features import Feature
from protocol.generation import GenerationInput
from protocol.payload import Chunk
from protocol.pricing import Units

# Enough of the manifest's digest to tell models apart; `GET /v1/models` has all of it.
FINGERPRINT_CHARS = 16

# What a choice that failed beside others says, in OpenRouter's word.
_FAILED = "error"


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A `JobCall` for text. `make_form` makes the form of the choice with that number."""

    orders: Sequence[GenerationOrder]
    streaming: Streaming
    names: FormNames
    make_form: Callable[[int], ChoiceForm]

    @property
    def is_streamed(self) -> bool:
        return self.streaming.is_streamed

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        whole = [choice for choice in choices if isinstance(choice, WholeAnswer)]
        envelope = self._envelope(whole[0].opened, self.names.whole, created_s)
        answer = envelope.to_plain() | {
            "choices": [self._choice(number, choice) for number, choice in enumerate(choices)],
            "usage": _usage_of([choice.outcome for choice in whole]),
        }
        return to_json(answer)

    def writer(self, opened: StartedAnswer, created_s: int) -> "GenerationWriter":
        envelope = self._envelope(opened, self.names.chunk, created_s)
        return GenerationWriter(self, envelope, opened)

    def parser(self, number: int, opened: StartedAnswer) -> AnswerParser | None:
        model = opened.model
        return parser_of(
            self.orders[number].job_input,
            model.chat_format if model is not None else "",
            lambda call: f"call_{opened.info.job_id}{number:02x}{call:02x}",
            reasons=model is not None and Feature.REASONING in model.features,
        )

    def _choice(self, number: int, choice: ChoiceAnswer) -> dict[str, object]:
        form = self.make_form(number)
        if isinstance(choice, ApiError):
            return {"index": number, **form.whole(AnswerParts()), **_failure(choice.problem)}
        finish = choice.outcome.finish
        try:
            parts = read_answer(self.parser(number, choice.opened), choice.chunks, finish)
        except RemoteProtocolError as error:
            raise error_of(error.code, str(error), is_billed=True) from error
        ending = {
            "finish_reason": parts.finish_reason,
            **_ended_by(self.orders[number].job_input, choice.outcome),
        }
        return {"index": number, **form.whole(parts), **ending}

    def _envelope(self, opened: StartedAnswer, object_name: str, created_s: int) -> Envelope:
        return Envelope(
            id=f"{self.names.id_prefix}-{opened.info.job_id}",
            object_name=object_name,
            created=created_s,
            model=opened.model_name,
            system_fingerprint=opened.info.model_digest[:FINGERPRINT_CHARS],
        )


class GenerationWriter:
    """A `StreamWriter`."""

    def __init__(self, call: GenerationCall, envelope: Envelope, opened: StartedAnswer) -> None:
        streaming = call.streaming
        self._envelope = envelope
        self._streaming = streaming
        self._input_units = opened.info.input_units
        self._outcomes: list[PurchaseResult] = []
        self._choices = [self._choice(call, number, opened) for number in range(len(call.orders))]
        # Where a text is all that there is to an answer, it needs no parser and no counts.
        is_plain = not streaming.continuous_usage
        self._plain = [
            choice.events if is_plain and choice.parser is None else None
            for choice in self._choices
        ]

    def _choice(self, call: GenerationCall, number: int, opened: StartedAnswer) -> "_ChoiceWriter":
        form = call.make_form(number)
        include_usage = self._streaming.include_usage
        events = ChoiceEvents(self._envelope, form.shape, number, include_usage=include_usage)
        job_input = call.orders[number].job_input
        return _ChoiceWriter(form, events, call.parser(number, opened), job_input)

    def first(self) -> bytes:
        return b"".join(choice.first() for choice in self._choices)

    def add(self, choice: int, chunks: Sequence[Chunk]) -> bytes:
        plain = self._plain[choice]
        if plain is not None and len(chunks) == 1:
            text = chunks[0].text
            return plain.text(text) if text else b""
        writer = self._choices[choice]
        if self._streaming.continuous_usage:
            writer.count(chunks, self._input_units)
        return writer.add(chunks)

    def end(self, choice: int, outcome: PurchaseResult) -> bytes:
        self._outcomes.append(outcome)
        return self._choices[choice].end(outcome)

    def fail(self, choice: int, problem: Problem) -> bytes:
        return self._choices[choice].fail(problem)

    def broken(self, problem: Problem) -> bytes:
        return OPENAI.error_event(problem)

    def last(self) -> bytes:
        include_usage = self._streaming.include_usage
        return closing_events(self._envelope, _usage_of(self._outcomes) if include_usage else None)


@dataclass(slots=True)
class _ChoiceWriter:
    """Writes the events of one choice."""

    form: ChoiceForm
    events: ChoiceEvents
    parser: AnswerParser | None
    job_input: GenerationInput
    tokens: int = 0

    def first(self) -> bytes:
        piece = self.form.first()
        return b"" if piece is None else self.events.piece(piece[0], logprobs=piece[1])

    def count(self, chunks: Sequence[Chunk], input_units: Units) -> None:
        self.tokens += sum(len(chunk.token_ids) for chunk in chunks)
        self.events.count(_counts([replace(input_units, output_tokens=self.tokens)]))

    def add(self, chunks: Sequence[Chunk]) -> bytes:
        if self.parser is not None:
            return self._write(self.parser.add(chunks))
        text = "".join(chunk.text for chunk in chunks)
        return self.events.text(text) if text else b""

    def end(self, outcome: PurchaseResult) -> bytes:
        events, reason = b"", API_FINISH_REASONS[outcome.finish]
        if self.parser is not None:
            last, reason = self.parser.finish(outcome.finish)
            events = self._write(last)
        last_piece = {**self.form.last(), **_ended_by(self.job_input, outcome)}
        return events + self.events.piece(last_piece, finish_reason=reason)

    def fail(self, problem: Problem) -> bytes:
        failure = _failure(problem)
        piece = self.form.last() | {"error": failure["error"]}
        return self.events.piece(piece, finish_reason=_FAILED)

    def _write(self, events: list[AnswerEvent]) -> bytes:
        if len(events) == 1 and isinstance(events[0], TextDelta):
            return self.events.text(events[0].text)
        pieces = self.form.pieces(events)
        return b"".join(self.events.piece(item, logprobs=scores) for item, scores in pieces)


def _ended_by(job_input: GenerationInput, outcome: PurchaseResult) -> dict[str, object]:
    """What ended an answer before its limit, under vLLM's name, and why it is shorter than was
    asked for, where it is."""
    ending: dict[str, object] = {"stop_reason": stop_of(job_input, outcome)}
    return ending if outcome.reason is None else ending | {"ended_by": outcome.reason.value}


def _failure(problem: Problem) -> dict[str, object]:
    return {"finish_reason": _FAILED, "error": error_object(problem)}


def _counts(used: Sequence[Units]) -> dict[str, object]:
    """OpenAI's counts of so many answers together."""
    prompt_tokens = sum(units.input_tokens for units in used)
    completion_tokens = sum(units.output_tokens for units in used)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(units.cached_tokens for units in used)},
    }


def _usage_of(outcomes: Sequence[PurchaseResult]) -> dict[str, object]:
    """OpenAI's counts, as metered and signed by nodes, and what they cost. Each choice was a job
    that read its prompt, so a prompt counts as often as it was answered."""
    counts = _counts([outcome.units for outcome in outcomes])
    return counts | {"cost_nano": sum(outcome.amount_nano for outcome in outcomes)}
