"""What must hold of a world, looked at from outside: answers, slots, queues, holds.

Money is the auditor's. Each check returns sentences, so that one look shows all that is wrong.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from capanode.served import ServedModel
from coordinator.buyer.result import PurchaseResult
from coordinator.leasing.open_lease import OpenLease
from coordinator.market.offers import OfferBook
from protocol.errors import Code
from protocol.ids import JobId, LeaseId
from protocol.limits import CHANNELS_PER_PEER_MAX
from sim.auditor import TakenAhead
from sim.buyer import End, JobReport
from sim.options import Faults
from sim.sim_worker import SimWorker, text_of
from sim.vices import Habit, Vice

# What may honestly happen to a job, and to which share of a world's jobs. All other codes accuse
# a party of a mistake that none here makes. The shares are well above what 180 worlds had
# at most: more of it, and something is broken that the codes do not tell.
HONEST_SHARES = {
    Code.NO_NODE_FITS: 0.25,
    Code.UNKNOWN_MODEL: 0.3,
    Code.OUT_OF_FUNDS: 0.4,
    Code.BUSY: 0.25,
    Code.DRAINING: 0.05,
    Code.MODEL_UNAVAILABLE: 0.15,
    Code.WORKER_CRASHED: 0.25,
    Code.DEADLINE_EXCEEDED: 0.05,
    Code.NODE_LOST: 0.3,
    Code.COORDINATOR_LOST: 0.7,
    # The node was restarted and has made new offers, of which the client did not know.
    Code.PRICE_MISMATCH: 0.05,
    # A client that cannot reach its nodes leaves leases unopened.
    Code.RATE_LIMITED: 0.15,
}
# How often one bad node is leased before a coordinator knows it: its first seats, and a probe now
# and then. With restarts of the coordinator that forget it, 120 worlds had up to 14 in one process.
# An input that another node found wrong is leased once more, which made 18 of them in one world.
# A node that makes up answers is not found out by anything that a market does so far.
LEASES_OF_BAD_NODE_MAX = 20
# An answer that has begun is not begun anew elsewhere. Of one process too, as it forgets failures.
LOST_AT_BAD_NODE_MAX = 12
_ID_IS_TAKEN = frozenset({Code.ALREADY_EXISTS, Code.REPLAYED})
_BLAMED = frozenset({Code.NODE_LOST, Code.BUSY, Code.WORKER_CRASHED, Code.DEADLINE_EXCEEDED})
# Of few jobs, a few are a large share.
_ALWAYS_ALLOWED = 5
_STORAGE_FULL_SHARE = 0.5
# A silent node, a second one that cannot be reached and a lost coordinator keep a job waiting for
# this long one after the other. A client that waits for longer has been forgotten.
PATIENCE_S = 40.0
# What a client hears whose input is not what it claimed.
BAD_INPUT_CODES = frozenset({Code.INPUT_TOO_LARGE, Code.PROMPT_TOO_LONG})


def honest_shares(faults: Faults) -> dict[Code, float]:
    """What may happen to the jobs of honest clients in a world with these faults."""
    if faults.disk_fulls:
        return {**HONEST_SHARES, Code.STORAGE_FULL: _STORAGE_FULL_SHARE}
    return HONEST_SHARES


def check_bad_node(
    name: str, vice: Vice, leased: Mapping[int, Sequence[JobId]], reports: Sequence[JobReport]
) -> Iterator[str]:
    """What one bad machine may cost: how often it is leased, and how many jobs end because of it.
    `leased` has a job for each of its leases, by process of the coordinator."""
    if vice is Vice.GARBAGE:
        return
    most = max(map(len, leased.values()), default=0)
    if most > LEASES_OF_BAD_NODE_MAX:
        yield f"{name} is {vice}, and was leased {most} times, of at most {LEASES_OF_BAD_NODE_MAX}"
    lost = {report.job_id for report in reports if ended_at_node(report)}
    most = max((len(lost.intersection(jobs)) for jobs in leased.values()), default=0)
    if most > LOST_AT_BAD_NODE_MAX:
        yield f"{most} jobs ended because {name} is {vice}, of at most {LOST_AT_BAD_NODE_MAX}"


def ended_at_node(report: JobReport) -> bool:
    """Whether the client lost its answer because of what a node did."""
    return report.code in _BLAMED and report.outcome is None


def check_bad_client(name: str, habit: Habit, codes: Collection[Code]) -> Iterator[str]:
    """Clients choose the ids of their jobs, and may choose the same: none can keep another from
    leasing, or be kept."""
    if habit is Habit.SQUATTING and not _ID_IS_TAKEN.isdisjoint(codes):
        yield f"{name} was told that the job id of another client is taken"


def check_shares(reports: Sequence[JobReport], shares: Mapping[Code, float]) -> Iterator[str]:
    """No honest code is so frequent that it hides a fault. The jobs of a run all meet what is
    broken at its time: they count once for each code."""
    failed = [(report.code, report.planned.run) for report in reports if report.code is not None]
    counts = Counter(code for code, run in failed if not run)
    counts.update(code for code, run in set(failed) if run)
    for code, count in counts.items():
        most = max(_ALWAYS_ALLOWED, shares.get(code, 1.0) * len(reports))
        if count > most:
            yield f"{count} of {len(reports)} jobs failed with {code}, more than faults explain"


def check_job(
    report: JobReport, *, honest: Collection[Code] = HONEST_SHARES, is_garbled: bool = False
) -> Iterator[str]:
    """What is wrong with one client's view of one job: no token lost, doubled or out of order.
    `is_garbled` if one of its nodes makes up tokens: then they are only counted."""
    planned, answer = report.planned, report.planned.answer
    count = len(report.token_ids)
    if not is_garbled and report.token_ids != answer.token_ids[:count]:
        yield f"{planned.name} got tokens that are not the answer's"
    if report.text != "".join(map(text_of, report.token_ids)):
        yield f"{planned.name} got text that is not its tokens'"
    if report.end is End.ANSWERED:
        yield from _check_answered(report, is_garbled=is_garbled)
    is_honest = report.code in honest or (planned.is_bad and report.code in BAD_INPUT_CODES)
    if report.end in (End.FAILED, End.CUT) and not is_honest:
        yield (
            f"{planned.name} failed with {report.code} after {report.total_ms:.0f} ms, "
            "which no honest party earns"
        )
    if report.code is Code.DEADLINE_EXCEEDED:
        yield from _check_deadline(report)
    if report.end is End.FAILED and report.chunks:
        yield f"{planned.name} delivered {report.chunks} chunks and says that it delivered nothing"


def check_taken_ahead(
    leases: Mapping[LeaseId, TakenAhead], reports: Sequence[JobReport]
) -> Iterator[str]:
    """A lease serves one job, and costs nothing if none came for it. A user who left the gateway
    before anything came does not know the id of the job."""
    asked = Counter(report.job_id for report in reports if report.job_id is not None)
    for job_id, count in asked.items():
        if count > 1:
            yield f"{count} jobs have the id {job_id}"
    for lease_id, taken in leases.items():
        is_unused = not taken.is_of_gateway and taken.job_id not in asked
        if is_unused and taken.captured_nano:
            yield f"no job came for lease {lease_id}, and {taken.captured_nano} was paid for it"


def check_pool(name: str, ready: int) -> Iterator[str]:
    """A pool of leases, when no job is left."""
    if ready:
        yield f"{name} keeps {ready} leases ahead of jobs that do not come"


def _check_deadline(report: JobReport) -> Iterator[str]:
    name, deadline_s = report.planned.name, report.planned.spec.deadline_s
    if report.total_ms < 1000 * deadline_s - 1:
        yield f"{name} is told after {report.total_ms:.0f} ms that its {deadline_s:g} s are over"
    elif deadline_s > PATIENCE_S:
        yield f"{name} waited for {deadline_s:g} s in vain"


def _check_answered(report: JobReport, *, is_garbled: bool) -> Iterator[str]:
    planned, answer, outcome = report.planned, report.planned.answer, report.outcome
    if planned.is_bad:
        yield f"{planned.name} was answered although its input is not what it claims"
    if outcome is None:
        yield f"{planned.name} ended well without a result"
        return
    yield from _check_parts(report, outcome)
    if outcome.reason is Code.DEADLINE_EXCEEDED:
        yield from _check_deadline(report)
        return
    if not is_garbled and (report.token_ids, report.data) != (answer.token_ids, answer.data):
        yield f"{planned.name} is called complete after {len(report.token_ids)} tokens"
    if (outcome.units, outcome.finish.value) != (answer.units, answer.reason):
        yield f"{planned.name} is billed {outcome.units} ({outcome.finish}), not {answer.units}"
    if not outcome.agrees:
        yield f"{planned.name}: the client's count is not its node's"


def _check_parts(report: JobReport, outcome: PurchaseResult) -> Iterator[str]:
    """The parts are the whole answer, and nothing twice; what a node is paid for it has delivered.
    It may be more than the client had use for only if it was left."""
    name, used = report.planned.name, sum(part.tokens_used for part in outcome.parts)
    if used != len(report.token_ids):
        yield f"{name} got {len(report.token_ids)} tokens, and {used} are in its parts"
    for part in outcome.parts:
        paid = part.units.output_tokens
        if paid < part.tokens_used or (part.code is None and paid > part.tokens_used):
            yield f"{name} used {part.tokens_used} tokens of {part.node}, and pays for {paid}"
    if sum(part.amount_nano for part in outcome.parts) != outcome.amount_nano:
        yield f"{name} is told another charge than that of its parts"


def check_model(name: str, model: ServedModel) -> Iterator[str]:
    """Slots and queue of one model at one node."""
    seats, worker = model.seats, model.worker
    assert isinstance(worker, SimWorker)
    if seats.running > seats.slots or worker.most_live > seats.slots:
        yield f"{name} runs {max(seats.running, worker.most_live)} jobs in {seats.slots} slots"
    if seats.running + seats.queued > seats.slots + seats.queue_max:
        yield f"{name} has {seats.queued} jobs in a queue of {seats.queue_max}"


def check_idle(name: str, model: ServedModel) -> Iterator[str]:
    """One model at one node, when no job is left."""
    seats, worker = model.seats, model.worker
    assert isinstance(worker, SimWorker)
    if seats.running or seats.queued or worker.live_jobs:
        yield f"{name} runs {seats.running}, queues {seats.queued}, works on {worker.live_jobs}"


def check_book(book: OfferBook) -> Iterator[str]:
    """What the coordinator believes of nodes, when no job is left."""
    for entry in book:
        for state in entry.models.values():
            if state.leases:
                yield f"{entry.node} is still charged with {len(state.leases)} leases"


def check_channels(name: str, channels: int, peers: int) -> Iterator[str]:
    """Conversations of one party."""
    if channels > peers * CHANNELS_PER_PEER_MAX:
        yield f"{name} has {channels} channels open to {peers} peers"


def check_holds(
    leases: Iterable[OpenLease], held_nano: Mapping[str, int], *, now_ms: int, late_ms: int
) -> Iterator[str]:
    """Every hold belongs to an open lease, is bounded by its ceiling, and ends in time."""
    expected: dict[str, int] = {}
    for opened in leases:
        granted = opened.lease.message
        expected[granted.client] = expected.get(granted.client, 0) + granted.ceiling_nano
        if opened.receipts_until_ms + late_ms < now_ms:
            late_s = (now_ms - opened.receipts_until_ms) / 1000
            yield f"the hold of {granted.lease_id} should have ended {late_s:g} s ago"
    for client, nano in held_nano.items():
        if nano > expected.get(client, 0):
            yield f"{nano} is held of {client}, its open leases come to {expected.get(client, 0)}"
