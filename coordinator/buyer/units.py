"""How much a job may use at most, and probably will: the bounds of a request, from its input alone.

A buyer has no tokenizer. A token of a byte-level vocabulary stands for at least one byte, so the
bytes of the text bound its tokens; chat templates add a little per message. What is not used is
released with the receipt, so the bound costs nothing but a larger hold for some seconds.
"""

from protocol.generation import GenerationInput
from protocol.limits import TOKENS_MAX
from protocol.payload import EmbeddingInput, JobInput
from protocol.pricing import Units
from protocol.tensors import TensorInput

# English text has about four bytes a token.
BYTES_PER_TOKEN = 4
# Role names and separators; and a default system prompt, which some templates add.
TEMPLATE_TOKENS_PER_MESSAGE = 16
TEMPLATE_TOKENS = 128
# The keys around a tool or a call, and what a template says of tools as such.
TOOL_TOKENS = 128
TOOLS_TOKENS = 1_024
# Answers are mostly shorter than what people allow.
OUTPUT_TOKENS_EXPECTED = 256


def units_of(job_input: JobInput) -> tuple[Units, Units]:
    """(the most that may be billed, what to expect). Raises ValueError if that is out of range."""
    if isinstance(job_input, GenerationInput):
        if job_input.tokenizes_only:
            # Nothing is metered, but a job that may use nothing is none.
            return Units(input_tokens=1), Units(input_tokens=1)
        return _generation_units(job_input)
    if isinstance(job_input, EmbeddingInput):
        count = len(job_input.texts)
        text_bytes = sum(len(text.encode()) for text in job_input.texts)
        # Two tokens around every text mark its beginning and end.
        marks = 2 * count
        if job_input.query is not None:
            # It is read again with each of them, and up to two more marks stand in between.
            text_bytes += count * len(job_input.query.encode())
            marks += 2 * count
        return (
            Units(input_tokens=min(text_bytes + marks, TOKENS_MAX)),
            Units(input_tokens=min(text_bytes // BYTES_PER_TOKEN + marks, TOKENS_MAX)),
        )
    if isinstance(job_input, TensorInput):
        units = Units(tensor_elements=job_input.elements)
        return units, units
    return Units(images=1), Units(images=1)


def _generation_units(job_input: GenerationInput) -> tuple[Units, Units]:
    texts = [message.content for message in job_input.messages]
    text_bytes = sum(len(text.encode()) for text in [*texts, job_input.prompt or ""])
    text_bytes += _tool_bytes(job_input)
    given = len(job_input.prompt_tokens) + len(job_input.prefix_tokens)
    template = TEMPLATE_TOKENS + TEMPLATE_TOKENS_PER_MESSAGE * len(texts) if texts else 1
    expected_input = given + template // 2 + text_bytes // BYTES_PER_TOKEN
    return (
        Units(
            input_tokens=min(given + template + text_bytes, TOKENS_MAX),
            output_tokens=job_input.max_tokens,
        ),
        Units(
            input_tokens=min(expected_input, TOKENS_MAX),
            output_tokens=min(job_input.max_tokens, OUTPUT_TOKENS_EXPECTED),
        ),
    )


def _tool_bytes(job_input: GenerationInput) -> int:
    """Of what a chat template writes of tools, of calls and of reasoning: it may indent JSON, which
    adds less than there was."""
    calls = [call for message in job_input.messages for call in message.tool_calls or ()]
    written = [call.name + call.id + call.arguments for call in calls]
    written += [tool.name + tool.description + tool.parameters for tool in job_input.tools]
    reasoning = sum(len((message.reasoning or "").encode()) for message in job_input.messages)
    size = sum(2 * len(text.encode()) + TOOL_TOKENS for text in written) + reasoning
    return size + (TOOLS_TOKENS if job_input.tools else 0)
