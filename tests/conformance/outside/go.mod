module podsvid.io/tests/conformance/outside

go 1.26.0

require (
	github.com/coreos/go-oidc v2.3.0+incompatible
	github.com/coreos/go-oidc/v3 v3.21.0
	github.com/spiffe/go-spiffe/v2 v2.9.0
)

require (
	github.com/go-jose/go-jose/v4 v4.1.5 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/pquerna/cachecontrol v0.2.0 // indirect
	golang.org/x/crypto v0.59.0 // indirect
	golang.org/x/oauth2 v0.36.0 // indirect
	gopkg.in/go-jose/go-jose.v2 v2.6.3 // indirect
)
