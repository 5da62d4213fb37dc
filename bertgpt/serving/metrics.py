"""/metrics for Prometheus. Each application has a registry of its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from bertgpt.serving.served import Served

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""seconds"""
OF_MODELS: Mapping[str, str] = {
    "input_tokens": "tokens of texts and prompts that were read",
    "output_tokens": "tokens that were generated",
    "batch_tokens": "tokens that were computed in batches",
    "batch_positions": "positions that were computed in batches, padding included: their ratio to batch_tokens is"
    " the fill of batches",
}
"""counters that a `Served` may keep → what they count"""


class Metrics:
    """Requests by endpoint and status, their latency, queues and tokens."""

    def __init__(self, models: Sequence[Served], accepted: Callable[[], int]):
        """Metrics of an application.

        Args:
          models: the loaded models.
          accepted: how many requests are accepted and not answered yet.
        """
        self.registry = CollectorRegistry()
        labels = ["endpoint", "status"]
        self.requests = Counter("bertgpt_requests", "Requests that were answered", labels, registry=self.registry)
        self.latency = Histogram(
            "bertgpt_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["endpoint"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        gauge = Gauge("bertgpt_requests_accepted", "Requests that are not answered yet", registry=self.registry)
        gauge.set_function(accepted)
        self.registry.register(OfModels(models))

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self.requests.labels(endpoint, str(status)).inc()
        self.latency.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)


class OfModels(Collector):
    """What the models count themselves, read when Prometheus asks."""

    def __init__(self, models: Sequence[Served]):
        self.models = models

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics of each model."""
        queue = GaugeMetricFamily("bertgpt_queue_length", "Calls that wait for a model or compute", labels=["model"])
        for served in self.models:
            queue.add_metric([served.name], served.waiting)
        yield queue
        for name, text in OF_MODELS.items():
            family = CounterMetricFamily(f"bertgpt_{name}", text[0].upper() + text[1:], labels=["model"])
            for served in self.models:
                family.add_metric([served.name], served.counters[name])
            yield family
