package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"sort"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// fetchWeb looks once at an endpoint of the profile https_web, which a CA of a file has certified.
func fetchWeb(ctx context.Context, url, caFile, domain string) error {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: no certificates", caFile)
	}
	return fetch(ctx, url, domain, federation.WithWebPKIRoots(roots))
}

// fetchSPIFFE looks once at one of the profile https_spiffe, known by an ID and by the bundle of a file.
func fetchSPIFFE(ctx context.Context, url, endpointID, bundleFile, domain string) error {
	id, err := spiffeid.FromString(endpointID)
	if err != nil {
		return err
	}
	known, err := spiffebundle.Load(id.TrustDomain(), bundleFile)
	if err != nil {
		return err
	}
	source := x509bundle.NewSet(known.X509Bundle())
	return fetch(ctx, url, domain, federation.WithSPIFFEAuth(source, id))
}

func fetch(ctx context.Context, url, domain string, option federation.FetchOption) error {
	name, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	found, err := federation.FetchBundle(ctx, name, url, option)
	if err != nil {
		say(map[string]any{"refused": err.Error()})
		return nil
	}
	sequence, _ := found.SequenceNumber()
	hint, _ := found.RefreshHint()
	keys := []string{}
	for id := range found.JWTAuthorities() {
		keys = append(keys, id)
	}
	sort.Strings(keys)
	say(map[string]any{
		"sequence": fmt.Sprint(sequence),
		"hint":     hint.Seconds(),
		"x509":     len(found.X509Authorities()),
		"jwt":      keys,
	})
	return nil
}

// published reads the file anew for each request, as the handler asks for it.
type published struct {
	file string
}

func (p published) GetBundleForTrustDomain(domain spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	return spiffebundle.Load(domain, p.file)
}

// serveWeb publishes the bundle of a file by a certificate of the web, until its input ends.
func serveWeb(chain, key, bundleFile, domain string) error {
	pair, err := tls.LoadX509KeyPair(chain, key)
	if err != nil {
		return err
	}
	return serve(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, bundleFile, domain)
}

// serveSPIFFE does so by an X509-SVID.
func serveSPIFFE(chain, key, bundleFile, domain string) error {
	svid, err := x509svid.Load(chain, key)
	if err != nil {
		return err
	}
	return serve(tlsconfig.TLSServerConfig(svid), bundleFile, domain)
}

func serve(config *tls.Config, bundleFile, domain string) error {
	name, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	handler, err := federation.NewHandler(name, published{bundleFile})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, TLSConfig: config}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	say(map[string]any{"port": listener.Addr().(*net.TCPAddr).Port})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
	}
	return server.Close()
}
