"""Where a process's traces go. Nothing of OpenTelemetry is loaded unless a collector is configured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from runtime.extras import not_installed
from runtime.settings import InvalidSetting
from runtime.tracing import NO_TRACING, Tracing


@contextmanager
def tracing(endpoint: str | None, service: str, facts: Mapping[str, str]) -> Iterator[Tracing]:
    """Tracing to the OTLP collector at `endpoint` (a URL; gRPC) until left, or none. `facts` are about this process.

    Raises InvalidSetting where OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield NO_TRACING
        return
    try:
        from runtime.opentelemetry import OpenTelemetry
    except ImportError:
        raise InvalidSetting(f"tracing_endpoint is set, and {not_installed('OpenTelemetry', 'tracing')}") from None
    found = OpenTelemetry(endpoint, service, facts)
    try:
        yield found
    finally:
        found.close()
