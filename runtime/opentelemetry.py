"""Traces by OpenTelemetry, to a collector over OTLP; its OTEL_* variables work as everywhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.headers import Headers
from runtime.tracing import NO_FACTS

# Milliseconds that spans which are not sent yet get at a stop.
FLUSH = 2000


class _Noted:
    """Implements runtime.tracing.Span."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def note(self, facts: Mapping[str, str]) -> None:
        self._span.set_attributes(dict(facts))


class OpenTelemetry:
    """Implements runtime.tracing.Tracing. A thread sends the spans; while the collector is away they are lost."""

    def __init__(self, endpoint: str, service: str, facts: Mapping[str, str]) -> None:
        resource = Resource.create({"service.name": service, **facts})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("podsvid")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, facts: Mapping[str, str] = NO_FACTS, caller: Headers = ()) -> Iterator[_Noted]:
        # Without a caller the present span of this task is the parent.
        carrier = {key: value for key, value in caller if isinstance(value, str)}
        context = self._propagator.extract(carrier) if "traceparent" in carrier else None
        kind = SpanKind.SERVER if context is not None else SpanKind.INTERNAL
        with self._tracer.start_as_current_span(
            name,
            context,
            kind,
            dict(facts),
            # An exception's text is for the log, and a trace goes to other people.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _Noted(span)
            except BaseException as error:
                reason = str(getattr(error, "reason", "") or type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, reason))
                raise

    def headers(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple(carrier.items())

    def close(self) -> None:
        """Send what is left, for a moment, and stop."""
        self._provider.force_flush(FLUSH)
        self._provider.shutdown()
