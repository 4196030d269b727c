module podsvid.io/tests/conformance/verifier

go 1.26.0
