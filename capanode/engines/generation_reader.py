"""From an input to a job of the generation engine: all that is decided before it holds a slot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInput,
    EngineRefusal,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.detokenize import AnswerText, TokenBytes
from capanode.engines.generation import Generation
from capanode.engines.grammar import Grammar, GrammarCompiler
from capanode.engines.logit_rules import LogitRules
from capanode.engines.prompt import Prompt, PromptReader, given_chars
from capanode.engines.sampling import SamplingParameters
from capanode.engines.scores import scores_max
from capanode.engines.weights import read_optional_json
from protocol.codec import encode
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import GenerationInput, TokensOutput, ToolChoice
from protocol.limits import KIB, OUTPUT_BYTES_MAX
from protocol.pricing import Units

# What is written in so many characters takes several milliseconds.
_SLOW_CHARS = 16 * KIB

_ALWAYS = (
    Feature.LOGPROBS,
    Feature.SAMPLING,
    Feature.TOKENIZE,
    Feature.STOP_DETAILS,
)


@dataclass(frozen=True, slots=True)
class ReadGeneration:
    """An input, its prompt as tokens, and the format that its answer must match."""

    job_input: GenerationInput
    prompt: Prompt
    grammar: Grammar | None = None


class GenerationReader:
    """Reads the inputs of one model. Where our sampler `chooses` the tokens of an answer, formats
    are enforced and answers can be checked."""

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        *,
        context_tokens: int,
        vocab: int,
        chooses: bool = True,
    ) -> None:
        """`config` is the model's config.json. Raises ModelLoadError."""
        end_tokens = _end_tokens_of(model_dir, config)
        self._prompts = PromptReader(model_dir, context_tokens=context_tokens, vocab_size=vocab)
        self._chooses = chooses
        self._grammars: GrammarCompiler | None = None
        if chooses:
            self._grammars = GrammarCompiler.load(
                model_dir / "tokenizer.json", vocab=vocab, end_tokens=end_tokens
            )
        self._context_tokens, self._vocab = context_tokens, vocab
        self._end_tokens = end_tokens

    @property
    def features(self) -> tuple[str, ...]:
        formats = (Feature.STRUCTURED_OUTPUTS,) if self._grammars is not None else ()
        checks = (Feature.ANSWER_SCORES,) if self._chooses else ()
        return (*self._prompts.features, *formats, *_ALWAYS, *checks)

    @property
    def token_bytes(self) -> TokenBytes:
        return self._prompts.token_bytes

    @property
    def chat_format(self) -> str:
        return self._prompts.chat.name if self._prompts.chat is not None else ""

    def slow_reading(self, job_input: EngineInput) -> Callable[[], ReadGeneration] | None:
        """See `Engine.slow_reading`: of formats and of long texts."""
        if not isinstance(job_input, GenerationInput):
            return None
        has_grammar = job_input.format is not None or job_input.tool_choice is ToolChoice.REQUIRED
        is_slow = has_grammar or given_chars(job_input) > _SLOW_CHARS
        return partial(self.read, job_input) if is_slow else None

    def take(self, job_input: EngineInput) -> ReadGeneration:
        """An input that was read, or is read now. Raises EngineRefusal."""
        if isinstance(job_input, GenerationInput):
            job_input = self.read(job_input)
        if not isinstance(job_input, ReadGeneration):
            raise EngineRefusal("this model generates text", code=Code.INVALID_INPUT)
        return job_input

    def read(self, job_input: GenerationInput) -> ReadGeneration:
        """Tokenize an input and compile its format; on any thread. Raises EngineRefusal."""
        if job_input.scores_prefix and not self._chooses:
            raise EngineRefusal("answers are not checked by this engine", code=Code.INVALID_INPUT)
        prompt = self._prompts.read(job_input)
        if job_input.tokenizes_only:
            return ReadGeneration(job_input, prompt)
        _check_scores(job_input, len(prompt.token_ids))
        return ReadGeneration(job_input, prompt, self._grammar(job_input, prompt))

    def tokenized(self, job_id: str, read: ReadGeneration) -> list[EngineEvent]:
        """The whole answer to a `tokenizes_only` input. Raises EngineRefusal."""
        token_ids = read.prompt.token_ids
        pieces = tuple(map(self._prompts.token_bytes.spelled, token_ids))
        data = encode(TokensOutput(tuple(token_ids), pieces))
        if len(data) > OUTPUT_BYTES_MAX:
            raise EngineRefusal(
                "the text has {tokens} tokens, which are too many for one answer",
                code=Code.INPUT_TOO_LARGE,
                tokens=len(token_ids),
            )
        return [
            Started(job_id, Units()),
            Produced(job_id, (), "", data),
            Completed(job_id, "complete", Units()),
        ]

    def job(self, job_id: str, read: ReadGeneration) -> Generation:
        """Raises EngineRefusal."""
        job_input, prompt = read.job_input, read.prompt
        count = len(prompt.token_ids)
        rules = self._rules(read)
        ends = frozenset(job_input.stop_token_ids)
        if not job_input.ignore_eos or (rules is not None and rules.has_grammar):
            ends |= self._end_tokens
        # An answer that goes on elsewhere has its prompt's scores already.
        is_new = not prompt.prefix_count or job_input.scores_prefix
        scores_prompt = job_input.prompt_logprobs is not None and is_new
        job = Generation(
            job_id=job_id,
            tokens=prompt.token_ids,
            sampling=SamplingParameters(
                temperature=job_input.temperature,
                top_p=job_input.top_p,
                top_k=job_input.top_k,
                seed=job_input.seed or 0,
                min_p=job_input.min_p,
            ),
            answer=AnswerText(
                self._prompts.token_bytes,
                job_input.stop,
                opened=prompt.opened,
                is_midway=prompt.is_midway,
                min_tokens=job_input.min_tokens,
                includes_stop=job_input.includes_stop,
            ),
            prefix_count=prompt.prefix_count,
            tokens_max=min(count + job_input.max_tokens, self._context_tokens),
            end_tokens=ends,
            rules=rules,
            logprobs=job_input.logprobs,
            prompt_logprobs=job_input.prompt_logprobs if scores_prompt else None,
            scores_prefix=job_input.scores_prefix,
            cache_salt=job_input.cache_salt,
        )
        if not job.scores_prefix:  # Else each token is looked at when it is scored.
            job.replay()
        if job.failure is not None:
            raise EngineRefusal(
                "what was answered before does not match the format", code=Code.INVALID_INPUT
            )
        return job

    def _grammar(self, job_input: GenerationInput, prompt: Prompt) -> Grammar | None:
        chat_format = self._prompts.chat.format if self._prompts.chat is not None else None
        # What a template has opened comes before what must match.
        after = chat_format.reasoning_close if chat_format is not None and prompt.opened else ""
        if self._grammars is not None:
            return self._grammars.compile(job_input, chat_format, after=after)
        if job_input.format is not None or job_input.tool_choice is ToolChoice.REQUIRED:
            raise EngineRefusal(
                "formats cannot be enforced with this model here", code=Code.INVALID_INPUT
            )
        return None

    def _rules(self, read: ReadGeneration) -> LogitRules | None:
        job_input, prompt = read.job_input, read.prompt
        is_needed = read.grammar is not None or LogitRules.are_needed(job_input)
        if not self._chooses or not is_needed:
            return None
        return LogitRules(
            job_input,
            read.grammar,
            prompt=prompt.token_ids[: len(prompt.token_ids) - prompt.prefix_count],
            vocab=self._vocab,
            ends=self._end_tokens | frozenset(job_input.stop_token_ids),
        )


def _check_scores(job_input: GenerationInput, count: int) -> None:
    """Raises EngineRefusal for a prompt whose scores are larger than an output."""
    if job_input.prompt_logprobs is None:
        return
    limit = scores_max(job_input.prompt_logprobs)
    if count > limit:
        raise EngineRefusal(
            "the prompt has {tokens} tokens; {limit} can be scored with so many alternatives",
            code=Code.INVALID_INPUT,
            tokens=count,
            limit=limit,
        )


def _end_tokens_of(model_dir: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end an answer. The generation config has the last word.

    Raises ModelLoadError.
    """
    generation = read_optional_json(model_dir / "generation_config.json")
    plain = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = plain if isinstance(plain, list) else [] if plain is None else [plain]
    if not all(type(item) is int for item in ids):
        raise ModelLoadError("eos_token_id is neither a number nor a list of numbers")
    return frozenset(ids)
