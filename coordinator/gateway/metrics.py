"""What Prometheus sees of a coordinator. Names are vLLM's with our prefix where it has them, and
so are the buckets: a dashboard for one fits the other.

One registry per program, made by its composition root: nothing here is global. Labels are made of
what the market knows, never of what a request says, and models are many: past a bound they share
one label.
"""

from collections.abc import Callable
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from coordinator.buyer.ahead.pool import PoolCounts
from protocol.messages import Task
from protocol.net.transport import TransportStatistics
from protocol.text import printable

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_END_TO_END_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
# Ours alone: the gateway's share of a request aims at three milliseconds.
_OVERHEAD_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MATCH_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)

# Model names come from strangers' offers; each costs about sixty time series.
MODELS_MAX = 200
OTHER = "other"


class ModelMetrics:
    """The series of one model, looked up once per job instead of once per token."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self.first_token_s = metrics.first_token_s.labels(model)
        self.inter_token_s = metrics.inter_token_s.labels(model)
        self.end_to_end_s = metrics.end_to_end_s.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.images = metrics.images.labels(model)
        self.tensor_elements = metrics.tensor_elements.labels(model)
        self._success = metrics.success
        self._model = model

    def count_success(self, finished_reason: str) -> None:
        self._success.labels(self._model, finished_reason).inc()


class Metrics:
    """All series of one program."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.first_token_s = self._histogram(
            "time_to_first_token_seconds", "From request to first output", _FIRST_TOKEN_S
        )
        self.inter_token_s = self._histogram(
            "inter_token_latency_seconds", "Between tokens of one answer", _INTER_TOKEN_S
        )
        self.end_to_end_s = self._histogram(
            "e2e_request_latency_seconds", "From request to end of answer", _END_TO_END_S
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Metered input tokens")
        self.generation_tokens = self._counter("generation_tokens", "Metered output tokens")
        self.images = self._counter("images", "Metered images")
        self.tensor_elements = self._counter("tensor_elements", "Metered elements of tensors")
        self.success = self._counter(
            "request_success", "Jobs that ended as they should", "model_name", "finished_reason"
        )
        self.jobs = self._counter("jobs", "Jobs by how they ended", "task", "outcome")
        self.attempts = self._counter("job_attempts", "Nodes tried for jobs", "task")
        self.http_requests = self._counter("http_requests", "Requests", "route", "status")
        self.overhead_s = Histogram(
            "capacloud_gateway_overhead_seconds",
            "From request to response headers, without the time at the node",
            buckets=_OVERHEAD_S,
            registry=self.registry,
        )
        self.match_s = Histogram(
            "capacloud_match_seconds",
            "One matching decision",
            buckets=_MATCH_S,
            registry=self.registry,
        )
        self._running = Gauge(
            "capacloud_num_requests_running", "Requests in the gateway", registry=self.registry
        )
        self._nodes = Gauge("capacloud_nodes", "Nodes with an offer", registry=self.registry)
        self._offers = Gauge(
            "capacloud_offers",
            "Nodes that offer a model",
            ["model_name"],
            registry=self.registry,
        )
        self._network = Gauge(
            "capacloud_network",
            "What the network holds, has carried and has refused since the start",
            ["figure"],
            registry=self.registry,
        )
        self._tasks = Gauge(
            "capacloud_tasks",
            "Tasks of the market's loop and of the HTTP server's",
            ["loop"],
            registry=self.registry,
        )
        self._leases_ahead = Gauge(
            "capacloud_leases_ahead",
            "Leases that wait for a job, and since the start jobs that found one (hits) or did not "
            "(misses), and leases that were given back (unused)",
            ["figure"],
            registry=self.registry,
        )
        self._by_model: dict[str, ModelMetrics] = {}

    def of_model(self, model: str) -> ModelMetrics:
        """The series of a model that a job ran on."""
        found = self._by_model.get(model)
        if found is None:
            label = printable(model) if len(self._by_model) < MODELS_MAX else OTHER
            found = self._by_model.get(label)
            if found is None:
                found = self._by_model[label] = ModelMetrics(self, label)
        return found

    def count_job(self, task: Task, outcome: str, *, attempts: int) -> None:
        """`outcome` is a finish or a wire code."""
        self.jobs.labels(task.value, outcome).inc()
        self.attempts.labels(task.value).inc(attempts)

    def watch_requests(self, running: Callable[[], int]) -> None:
        """Ask for the number of running requests when the metrics are read."""
        self._running.set_function(running)

    def set_market(self, nodes: int, offers: dict[str, int]) -> None:
        """The offer book as it is now."""
        self._nodes.set(nodes)
        self._offers.clear()
        ordered = sorted(offers.items(), key=lambda item: (-item[1], item[0]))
        for model, count in ordered[:MODELS_MAX]:
            self._offers.labels(printable(model)).set(count)

    def set_tasks(self, tasks: dict[str, int]) -> None:
        """How many each loop has now, by its name."""
        for loop, count in tasks.items():
            self._tasks.labels(loop).set(count)

    def set_network(self, statistics: TransportStatistics) -> None:
        """The market's network as it is now; each figure by its name."""
        for figure in fields(statistics):
            self._network.labels(figure.name).set(getattr(statistics, figure.name))

    def set_leases_ahead(self, counts: PoolCounts) -> None:
        """The pool of leases as it is now."""
        for figure in fields(counts):
            self._leases_ahead.labels(figure.name).set(getattr(counts, figure.name))

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"capacloud_{name}", meaning, ["model_name"], buckets=buckets, registry=self.registry
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(
            f"capacloud_{name}", meaning, labels or ("model_name",), registry=self.registry
        )
