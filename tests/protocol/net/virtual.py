"""Runs a test under a clock that jumps to the next deadline whenever all tasks wait."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from trio.testing import MockClock


def virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """As if the test had an argument `autojump_clock`: pytest-trio looks for a clock only among a
    test's own arguments, not among those of its fixtures."""

    @functools.wraps(test)
    async def with_clock(*args: Any, autojump_clock: MockClock, **kwargs: Any) -> None:
        await test(*args, **kwargs)

    signature = inspect.signature(test)
    clock = inspect.Parameter("autojump_clock", inspect.Parameter.KEYWORD_ONLY)
    with_clock.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it
        parameters=[*signature.parameters.values(), clock]
    )
    return with_clock


def all_in_virtual_time(cls: type) -> type:
    """Every test of the class, inherited ones too."""
    for name in dir(cls):
        if name.startswith("test_"):
            setattr(cls, name, virtual_time(getattr(cls, name)))
    return cls
