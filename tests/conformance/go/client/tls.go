package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type jwtbundleSource = jwtbundle.Source

func source(ctx context.Context, address string) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
}

// tlsServer echoes lines to the one SPIFFE ID that may call, until its input ends.
func tlsServer(ctx context.Context, address, peer string) error {
	own, err := source(ctx, address)
	if err != nil {
		return err
	}
	defer own.Close()
	authorize := tlsconfig.AuthorizeID(spiffeid.RequireFromString(peer))
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(authorize, own))
	if err != nil {
		return err
	}
	defer listener.Close()
	say(map[string]any{"address": listener.Addr().String()})
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				lines := bufio.NewScanner(connection)
				for lines.Scan() {
					if _, err := fmt.Fprintln(connection, lines.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
	<-ctx.Done()
	return nil
}

// tlsClient sends lines over a connection that it keeps and over new ones, until its SVID was renewed often enough.
func tlsClient(ctx context.Context, address, server, peer, rotations string) error {
	wanted, err := strconv.Atoi(rotations)
	if err != nil {
		return err
	}
	own, err := source(ctx, address)
	if err != nil {
		return err
	}
	defer own.Close()
	mode := spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(spiffeid.RequireFromString(peer)), own)
	dial := func() (net.Conn, error) { return spiffetls.DialWithMode(ctx, "tcp", server, mode) }
	kept, err := dial()
	if err != nil {
		return err
	}
	defer kept.Close()
	keptLines := bufio.NewReader(kept)
	serials := map[string]bool{}
	sent := 0
	for len(serials) <= wanted {
		svid, err := own.GetX509SVID()
		if err != nil {
			return err
		}
		serials[svid.Certificates[0].SerialNumber.Text(16)] = true
		if err := echo(kept, keptLines); err != nil {
			return fmt.Errorf("kept connection after %d: %w", sent, err)
		}
		fresh, err := dial()
		if err == nil {
			err = echo(fresh, bufio.NewReader(fresh))
			fresh.Close()
		}
		if err != nil {
			return fmt.Errorf("new connection after %d: %w", sent, err)
		}
		sent += 2
		time.Sleep(20 * time.Millisecond)
	}
	say(map[string]any{"sent": sent, "serials": len(serials)})
	return nil
}

func echo(connection net.Conn, lines *bufio.Reader) error {
	if _, err := fmt.Fprintln(connection, "hello"); err != nil {
		return err
	}
	line, err := lines.ReadString('\n')
	if err != nil {
		return err
	}
	if line != "hello\n" {
		return fmt.Errorf("answered %q", line)
	}
	return nil
}
