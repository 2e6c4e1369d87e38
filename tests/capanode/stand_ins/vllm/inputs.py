from typing import Literal, NotRequired, TypedDict


class TokensInput(TypedDict):
    type: Literal["token"]
    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


def tokens_input(
    prompt_token_ids: list[int], *, prompt: str | None = None, cache_salt: str | None = None
) -> TokensInput:
    made = TokensInput(type="token", prompt_token_ids=prompt_token_ids)
    if prompt is not None:
        made["prompt"] = prompt
    if cache_salt is not None:
        made["cache_salt"] = cache_salt
    return made
