"""The content of `/metrics`: requests, latencies and batches in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from toolagent import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Figures:
    """Counters of one server process, since it started."""

    # The paths that are counted each for itself; all others are 'page'.
    routes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "toolagent_requests",
            "HTTP requests by route and status code",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "toolagent_request_seconds",
            "Seconds from a request's headers to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "toolagent_batch_size",
            "Problems that were played together",
            buckets=_BATCHES,
            registry=self._registry,
        )
        self._played = Counter(
            "toolagent_problems",
            "Problems played, by model and outcome",
            ["model", "solved"],
            registry=self._registry,
        )
        Gauge(
            "toolagent_server_info", "1, with the version", ["version"], registry=self._registry
        ).labels(__version__).set(1)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        route = path if path in self.routes else "page"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Counts one played batch."""
        self._batches.observe(size)

    def played(self, model: str, solved: bool) -> None:
        """Counts one played problem."""
        self._played.labels(model, "true" if solved else "false").inc()

    def text(self) -> bytes:
        """All counters, in Prometheus' text format."""
        return generate_latest(self._registry)
