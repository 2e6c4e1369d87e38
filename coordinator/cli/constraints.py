"""Options of everything that buys: which nodes, how dear, how slow. Declared once.

`@takes_constraints` gives a command the options of `read_constraints`, and calls it with the
`constraints` that they come to.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.limits import JOB_DURATION_MAX_MS
from protocol.messages import NO_CONSTRAINTS, Constraints, DataCollection, IsolationTier, PriceCap
from protocol.money import parse_credits
from protocol.programs.commands import UsageError

Credits = str | None
Names = list[str] | None


def _option(text: str, **settings: Any) -> Any:
    """An option among those of this module, which help shows together."""
    return typer.Option(help=text, rich_help_panel="Which node, how dear, how slow", **settings)


def read_constraints(
    max_cost: Annotated[Credits, _option("Credits that the whole job may cost at most.")] = None,
    max_price_in: Annotated[Credits, _option("Credits for a million input tokens at most.")] = None,
    max_price_out: Annotated[
        Credits, _option("Credits for a million output tokens at most.")
    ] = None,
    max_price_image: Annotated[Credits, _option("Credits for an image at most.")] = None,
    max_price_tensor: Annotated[
        Credits, _option("Credits for a thousand tensor elements at most.")
    ] = None,
    max_latency_ms: Annotated[
        int | None,
        _option(
            "Expected milliseconds to the first output at most.", min=1, max=JOB_DURATION_MAX_MS
        ),
    ] = None,
    only: Annotated[Names, _option("Only this node (peer id); may be repeated.")] = None,
    ignore: Annotated[Names, _option("Not this node; may be repeated.")] = None,
    order: Annotated[Names, _option("Try this node first; may be repeated.")] = None,
    fallbacks: Annotated[bool, _option("Try other nodes if the chosen one fails.")] = True,
    region: Annotated[Names, _option("Only in this region; may be repeated.")] = None,
    quantization: Annotated[
        Names, _option("Only weights of this kind, such as bf16; may be repeated.")
    ] = None,
    isolation: Annotated[
        IsolationTier, _option("The weakest sandbox that will do.")
    ] = NO_CONSTRAINTS.isolation,
    data_collection: Annotated[
        DataCollection, _option("Whether the node may keep what you send.")
    ] = NO_CONSTRAINTS.data_collection,
) -> Constraints:
    """Raises UsageError for a value that is none."""
    try:
        return Constraints(
            max_price=PriceCap(
                prompt_nano_per_mtok=_nano(max_price_in),
                completion_nano_per_mtok=_nano(max_price_out),
                image_nano=_nano(max_price_image),
                tensor_nano_per_kelement=_nano(max_price_tensor),
            ),
            max_cost_nano=_nano(max_cost),
            max_latency_ms=max_latency_ms,
            only=_peers(only),
            ignore=_peers(ignore),
            order=_peers(order),
            allow_fallbacks=fallbacks,
            regions=tuple(region or ()),
            quantizations=tuple(quantization or ()),
            isolation=isolation,
            data_collection=data_collection,
        )
    except (ValueError, RemoteProtocolError) as error:
        raise UsageError(str(error)) from None


def takes_constraints(command: Callable[..., None]) -> Callable[..., None]:
    """See the module."""
    own = inspect.signature(command).parameters
    options = inspect.signature(read_constraints).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in options}
        command(constraints=read_constraints(**chosen), **values)

    listed = [*(own[name] for name in own if name != "constraints"), *options.values()]
    # Typer asks the function itself for its options, so the wrapper must not point at the original.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]  # read by inspect
    run.__annotations__ = {option.name: option.annotation for option in listed}
    return run


def _nano(text: Credits) -> int | None:
    return None if text is None else parse_credits(text)


def _peers(texts: Names) -> tuple[PeerId, ...]:
    return tuple(parse_peer_id(text) for text in texts or ())
