"""What a model can do beyond its task, as offers list it and as clients ask for it.

A word that is not here is one of a later version: offers may list it, and it changes nothing.
"""

from enum import StrEnum


class Feature(StrEnum):
    """A capability of one model at one node."""

    # It has a chat template: messages can be given.
    CHAT = "chat"
    # It is told of tools and writes calls in the form of `protocol.chat_formats`.
    TOOLS = "tools"
    # It writes its reasoning before the answer, in the form of `protocol.chat_formats`.
    REASONING = "reasoning"
    # `format` of an input is enforced.
    STRUCTURED_OUTPUTS = "structured_outputs"
    LOGPROBS = "logprobs"
    # Penalties, min_p, biases, min_tokens and stop tokens.
    SAMPLING = "sampling"
    # `tokenizes_only`.
    TOKENIZE = "tokenize"
    VISION = "vision"
    # It scores pairs of texts: `query` of an embedding's input is taken, and nothing else.
    PAIR_SCORES = "pair_scores"
    # Its receipts say which stop string ended a text, and `includes_stop` is honoured.
    STOP_DETAILS = "stop_details"
    # `scores_prefix` of an input is honoured.
    ANSWER_SCORES = "answer_scores"
    # It keeps the last rows of a stream from one job to the next: `protocol.tensors.StreamPlace`.
    STREAM_WINDOWS = "stream_windows"
    # Its node takes leases of requests that leave their payload open: see `JobRequest`.
    LATE_PAYLOAD = "late_payload"


# What a node lists for all its models, whatever they are.
NODE_FEATURES = frozenset({Feature.LATE_PAYLOAD})
