"""Collect the metrics that `/metrics` exposes to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine_thread import EngineThread

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Metrics of one server, in their own registry, so that a process can run several servers."""

    def __init__(self, engine_thread: EngineThread) -> None:
        """Create the metrics; gauges read `engine_thread` and its engine at each scrape."""
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "cwm_requests",
            "HTTP requests, by path and status; 499 if the client disconnected.",
            ["path", "status"],
            registry=r,
        )
        self.prompt_tokens = Counter("cwm_prompt_tokens", "Tokens of accepted prompts.", registry=r)
        self.generated_tokens = Counter("cwm_generated_tokens", "Generated tokens.", registry=r)
        self.first_token = Histogram(
            "cwm_time_to_first_token_seconds",
            "Seconds from the arrival of a request to its first token.",
            registry=r,
            buckets=SECONDS,
        )
        self.request_seconds = Histogram(
            "cwm_request_seconds", "Seconds from the arrival of a request to its end.", registry=r, buckets=SECONDS
        )
        self.token_rate = Histogram(
            "cwm_sequence_tokens_per_second",
            "Tokens a second of each sequence after its first token.",
            registry=r,
            buckets=RATES,
        )
        gauges = {
            "cwm_sequences_open": ("Sequences that run or wait.", lambda: engine_thread.open),
            "cwm_sequences_running": ("Sequences that the engine runs.", lambda: engine_thread.engine.running),
            "cwm_sequences_waiting": ("Sequences in the engine's queue.", lambda: engine_thread.engine.waiting),
            "cwm_cache_bytes": ("Size of the key-value cache in bytes.", lambda: engine_thread.engine.cache_bytes),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=r).set_function(value)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' exposition format."""
        return generate_latest(self.registry)
