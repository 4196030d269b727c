// Serves mutual TLS, or calls a server, with SVIDs that follow the Workload API by themselves.
//
//	workload-api-go serve
//	workload-api-go call URL
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(arguments []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// SPIFFE_ENDPOINT_SOCKET says where. Returns when the first SVID is there.
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("no SVID: %w", err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	// Whoever has an SVID of our own trust domain.
	ours := tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain())
	if len(arguments) == 2 && arguments[0] == "call" {
		return call(arguments[1], source, ours)
	}
	server := &http.Server{
		Addr:              ":8443",
		TLSConfig:         tlsconfig.MTLSServerConfig(source, source, ours),
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
			peer, err := spiffeid.FromURI(request.TLS.PeerCertificates[0].URIs[0])
			if err != nil {
				http.Error(answer, err.Error(), http.StatusForbidden)
				return
			}
			fmt.Fprintf(answer, "hello %s\n", peer)
		}),
	}
	log.Printf("serving as %s", svid.ID)
	return server.ListenAndServeTLS("", "")
}

func call(url string, source *workloadapi.X509Source, authorize tlsconfig.Authorizer) error {
	client := &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, authorize)},
	}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}
