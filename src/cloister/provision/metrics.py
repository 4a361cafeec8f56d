"""What a running key server shows about itself: Prometheus metrics and a health endpoint."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloister.provision.decision import Decision

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and gauges of one server.

    Args:
        active_clients: returns how many clients are being served.
        waiting_clients: returns how many wait until others are done.
        turned_away: returns how many connections were closed at once so far.
        secrets: returns how many secrets can be released.
    """

    def __init__(
        self,
        *,
        active_clients: Callable[[], int],
        waiting_clients: Callable[[], int],
        turned_away: Callable[[], int],
        secrets: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry()
        self._decisions = Counter(
            "cloister_key_server_decisions",
            "Clients by outcome and, where one was refused, the check that failed.",
            ["outcome", "check"],
            registry=self._registry,
        )
        self._released = Counter(
            "cloister_key_server_released",
            "Secrets released, by name.",
            ["secret"],
            registry=self._registry,
        )
        self._failures = Counter(
            "cloister_key_server_internal_failures",
            "Audit, reload and collateral failures.",
            ["part"],
            registry=self._registry,
        )
        for name, meaning, function in (
            ("active_clients", "Clients that are being served.", active_clients),
            ("waiting_clients", "Clients that wait until others are done.", waiting_clients),
            ("turned_away", "Connections closed at once, because of the limits.", turned_away),
            ("secrets", "Secrets that can be released.", secrets),
        ):
            gauge = Gauge(f"cloister_key_server_{name}", meaning, registry=self._registry)
            gauge.set_function(function)

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        self._decisions.labels(decision.outcome.value, decision.check or "").inc()
        if decision.secret is not None:
            self._released.labels(decision.secret).inc()

    def failed(self, part: str) -> None:
        """Count a failure of the server itself."""
        self._failures.labels(part).inc()

    def to_text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def admin_app(
    metrics: Metrics, *, health: Callable[[], list[str]], clock: Callable[[], datetime.datetime]
) -> Starlette:
    """Return the application with ``/metrics`` and ``/healthz``.

    Args:
        metrics: what ``/metrics`` shows.
        health: returns what is wrong, one line each; an empty list is health.
        clock: gives the present time (aware).
    """

    def show_metrics(_: Request) -> Response:
        return Response(metrics.to_text(), media_type=_CONTENT_TYPE)

    def show_health(_: Request) -> Response:
        problems = health()
        return JSONResponse(
            {"healthy": not problems, "problems": problems, "time": clock().isoformat()},
            status_code=503 if problems else 200,
        )

    return Starlette(routes=[Route("/metrics", show_metrics), Route("/healthz", show_health)])
