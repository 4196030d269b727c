"""The rows of the SPIFFE specification and the tests that show them: docs/conformance.md is made of both."""
