package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

const (
	between  = time.Second
	patience = 10 * time.Second
)

// traffic makes a new connection to a peer each second until its input ends: how many, which failed and when, and how
// many authorities were seen to sign on either side.
func traffic(ctx context.Context, address, server, peer string) error {
	own, err := source(ctx, address)
	if err != nil {
		return err
	}
	defer own.Close()
	config := tlsconfig.MTLSClientConfig(own, own, tlsconfig.AuthorizeID(spiffeid.RequireFromString(peer)))
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	made, failed := 0, []string{}
	here, there := map[string]bool{}, map[string]bool{}
	once := func() error {
		svid, err := own.GetX509SVID()
		if err != nil {
			return err
		}
		connection, err := dialed(ctx, server, config)
		if err != nil {
			return err
		}
		defer connection.Close()
		if err := echo(connection, bufio.NewReader(connection)); err != nil {
			return err
		}
		here[authority(svid.Certificates[0])] = true
		there[authority(connection.(*tls.Conn).ConnectionState().PeerCertificates[0])] = true
		return nil
	}
	for next := time.NewTicker(between); ; {
		if err := once(); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %s", time.Now().UTC().Format(time.RFC3339), err))
		}
		made++
		select {
		case <-ended:
			next.Stop()
			say(map[string]any{"made": made, "failed": failed, "own": len(here), "peers": len(there)})
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-next.C:
		}
	}
}

func authority(leaf *x509.Certificate) string {
	return hex.EncodeToString(leaf.AuthorityKeyId)
}

// dialed is a new connection, which has as long for all that is said on it as it had to come about.
func dialed(ctx context.Context, server string, config *tls.Config) (net.Conn, error) {
	trying, done := context.WithTimeout(ctx, patience)
	defer done()
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	connection, err := dialer.DialContext(trying, "tcp", server)
	if err != nil {
		return nil, err
	}
	connection.SetDeadline(time.Now().Add(patience))
	return connection, nil
}
