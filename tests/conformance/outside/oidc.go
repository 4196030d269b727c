package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"

	oidc2 "github.com/coreos/go-oidc"
	oidc3 "github.com/coreos/go-oidc/v3/oidc"
)

// logins verifies each token of its input by an issuer's documents, with both versions of the library: API servers have
// one, OpenBao the other.
func logins(ctx context.Context, issuer, caFile, audience string) error {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: no certificates", caFile)
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	second, err := oidc2.NewProvider(oidc2.ClientContext(ctx, client), issuer)
	if err != nil {
		return fmt.Errorf("go-oidc 2: %w", err)
	}
	third, err := oidc3.NewProvider(oidc3.ClientContext(ctx, client), issuer)
	if err != nil {
		return fmt.Errorf("go-oidc 3: %w", err)
	}
	// Version 2 goes by RS256 alone unless it is told; version 3 by what the discovery document says.
	by2 := second.Verifier(&oidc2.Config{ClientID: audience, SupportedSigningAlgs: []string{"RS256", "ES256"}})
	by3 := third.Verifier(&oidc3.Config{ClientID: audience})
	say(map[string]any{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<16), 1<<16)
	for lines.Scan() {
		said := map[string]any{}
		if token, err := by2.Verify(ctx, lines.Text()); err != nil {
			said["2"] = "refused: " + err.Error()
		} else {
			said["2"] = token.Subject
		}
		if token, err := by3.Verify(ctx, lines.Text()); err != nil {
			said["3"] = "refused: " + err.Error()
		} else {
			said["3"] = token.Subject
		}
		say(said)
	}
	return nil
}
