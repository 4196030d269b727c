"""The Go programs of this suite."""

from pathlib import Path

from tests.go_tools import Program

_HERE = Path(__file__).parent

PROGRAMS = (
    Program("promtool", _HERE / "prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
    Program("csi-sanity", _HERE / "go", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"),
    Program("watchers", _HERE / "watchers", "."),
    Program("go-client", _HERE / "go", "./client"),
    Program("outsider", _HERE / "outside", "."),
    # Before ML-DSA was in Go, and since.
    Program("verifier-go1.26", _HERE / "verifier", ".", toolchain="go1.26.8"),
    Program("verifier-go1.27", _HERE / "verifier", ".", toolchain="go1.27.3"),
)
