"""One series of a stream: the rows before its next one, and the node that keeps them too.

The gateway has the window for as long as the stream, so that any node can go on. A node that keeps
windows has it as well, and gets new rows only: as long as it answers, a window travels once.
Synchronous: what to send, and what follows from the answer.
"""

from dataclasses import dataclass, replace

from coordinator.buyer.attempt import AttemptTerms
from coordinator.gateway.errors import ApiError, invalid
from coordinator.gateway.inference.messages import InferenceRequest
from coordinator.gateway.inference.models import signature_of
from coordinator.gateway.inference.orders import check_inputs, orders_of
from coordinator.gateway.market_side.market import ModelInfo
from coordinator.gateway.orders import Order, Routing
from protocol.errors import Code
from protocol.features import Feature
from protocol.ids import PeerId
from protocol.limits import STREAM_WINDOW_BYTES_MAX
from protocol.tensor_rows import RowWindow, Tensors, rows_of
from protocol.tensors import StreamPlace

# Nodes that lose a window so often in a row do not keep it: then each job brings it.
_LOSSES_MAX = 3


@dataclass
class Series:
    """`stream_id` is what nodes call the rows since the series began, `next_row` the number of the
    next one, and `keeper` the node that has those before it."""

    model: ModelInfo
    routing: Routing
    stream_id: bytes
    window: RowWindow
    next_row: int = 0
    keeper: PeerId | None = None
    losses: int = 0

    @classmethod
    def begin(cls, model: ModelInfo, routing: Routing, stream_id: bytes) -> "Series":
        signature = signature_of(model)
        window_rows = signature.window_rows if signature is not None else 0
        return cls(model, routing, stream_id, RowWindow(max(0, window_rows - 1)))

    def begun_anew(self, stream_id: bytes) -> "Series":
        return self.begin(self.model, self.routing, stream_id)

    @property
    def has_begun(self) -> bool:
        """Whether some of it is answered."""
        return self.next_row > 0

    def check(self, request: InferenceRequest, inputs: Tensors) -> None:
        """Raises ApiError (400) if the model does not take the request, or these rows now."""
        signature = signature_of(self.model)
        if signature is not None:
            check_inputs(request, signature)
        if not self.window.fits(inputs):
            raise invalid("the inputs have another form than those before them", "inputs")

    def add_context(self, inputs: Tensors) -> None:
        """Rows that were answered before; no node has them here."""
        self.window = self.window.after(inputs)
        self.keeper = None

    def whole_orders(self, request: InferenceRequest) -> tuple[Order, ...]:
        """The request with the window before it, for any node. Raises ApiError."""
        place = StreamPlace(self.stream_id, self.next_row) if self.window.rows_max else None
        whole = replace(request, inputs=self.window.before(request.inputs))
        return orders_of(
            whole, self.routing, self.model, context_rows=self.window.rows, place=place
        )

    def continued_orders(self, request: InferenceRequest) -> tuple[Order, ...] | None:
        """The request alone, for the node that has the window; None if none has it. Raises
        ApiError."""
        if self.keeper is None or self.losses >= _LOSSES_MAX:
            return None
        constraints = self.routing.constraints
        others = (node for node in constraints.order if node != self.keeper)
        features = dict.fromkeys((*constraints.features, Feature.STREAM_WINDOWS))
        # Another node that is chosen all the same, because this one is busy, says that it has no
        # window.
        routing = replace(
            self.routing,
            constraints=replace(
                constraints, order=(self.keeper, *others), features=tuple(map(str, features))
            ),
        )
        place = StreamPlace(self.stream_id, self.next_row, is_continued=True)
        return orders_of(request, routing, self.model, place=place)

    def note_answer(self, inputs: Tensors, terms: AttemptTerms, *, was_continued: bool) -> None:
        self.window = self.window.after(inputs)
        self.next_row += rows_of(inputs) or 0
        if was_continued:
            self.losses = 0
        is_kept = 0 < self.window.size <= STREAM_WINDOW_BYTES_MAX
        keeps_windows = Feature.STREAM_WINDOWS in terms.features
        self.keeper = terms.node if is_kept and keeps_windows else None

    def note_failure(self, error: ApiError) -> bool:
        """A job that brought new rows only has failed. Whether it is worth sending it with the
        window, to any node."""
        self.keeper = None
        problem = error.problem
        self.losses += problem.code == Code.STATE_MISSING.value
        # Less may be free of what this job was bound to.
        return problem.should_retry or problem.code == Code.NO_NODE_FITS.value
