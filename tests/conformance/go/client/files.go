package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
)

// files runs a gRPC server on one volume's files and calls it with another's, both through gRPC's own file watcher as
// proxyless gRPC uses it, until the server's certificate was seen to rotate often enough.
func files(ctx context.Context, server, client, rotations string) error {
	wanted, err := strconv.Atoi(rotations)
	if err != nil {
		return err
	}
	serving, err := watcherOf(server)
	if err != nil {
		return fmt.Errorf("server's files: %w", err)
	}
	defer serving.Close()
	calling, err := watcherOf(client)
	if err != nil {
		return fmt.Errorf("client's files: %w", err)
	}
	defer calling.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		material, err := serving.KeyMaterial(ctx)
		if err != nil {
			return nil, err
		}
		return &tls.Config{
			Certificates:     material.Certs,
			ClientAuth:       tls.RequireAnyClientCert,
			VerifyConnection: func(state tls.ConnectionState) error { return verify(state, material) },
			NextProtos:       []string{"h2"},
		}, nil
	}}
	program := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	healthgrpc.RegisterHealthServer(program, health.NewServer())
	go program.Serve(listener)
	defer program.Stop()
	serials := map[string]bool{}
	calls, maps := 0, 0
	for len(serials) <= wanted {
		material, err := calling.KeyMaterial(ctx)
		if err != nil {
			return fmt.Errorf("client's material: %w", err)
		}
		maps = len(material.SPIFFEBundleMap)
		config := &tls.Config{
			Certificates:       material.Certs,
			InsecureSkipVerify: true, // the name is a SPIFFE ID, checked below
			VerifyConnection: func(state tls.ConnectionState) error {
				if err := verify(state, material); err != nil {
					return err
				}
				serials[state.PeerCertificates[0].SerialNumber.Text(16)] = true
				return nil
			},
		}
		connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			return err
		}
		_, err = healthgrpc.NewHealthClient(connection).Check(ctx, &healthgrpc.HealthCheckRequest{})
		connection.Close()
		if err != nil {
			return fmt.Errorf("call %d: %w", calls, err)
		}
		calls++
		time.Sleep(50 * time.Millisecond)
	}
	say(map[string]any{"calls": calls, "serials": len(serials), "domains": maps})
	return nil
}

// verify does what gRPC A87 says: the roots are those of the peer's own trust domain in the bundle map.
func verify(state tls.ConnectionState, material *certprovider.KeyMaterial) error {
	leaf := state.PeerCertificates[0]
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return err
	}
	bundle := material.SPIFFEBundleMap[id.TrustDomain().Name()]
	if bundle == nil {
		return fmt.Errorf("no bundle for %s", id.TrustDomain())
	}
	roots := x509.NewCertPool()
	for _, authority := range bundle.X509Authorities() {
		roots.AddCert(authority)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func watcherOf(directory string) (certprovider.Provider, error) {
	return pemfile.NewProvider(pemfile.Options{
		CertFile:            filepath.Join(directory, "certificates.pem"),
		KeyFile:             filepath.Join(directory, "private_key.pem"),
		RootFile:            filepath.Join(directory, "ca_certificates.pem"),
		SPIFFEBundleMapFile: filepath.Join(directory, "trust_bundles.json"),
		RefreshDuration:     200 * time.Millisecond,
	})
}
