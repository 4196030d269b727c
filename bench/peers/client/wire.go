package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// raw leaves messages as they are: whoever wrote the plan knows what they mean, and nothing is measured but the server.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

// secured is what a TLS server is known by; without a name its chain alone counts, as SPIFFE has it.
type secured struct {
	Roots, Cert, Key, Name string
}

func (s *secured) credentials() (credentials.TransportCredentials, error) {
	if s == nil {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(s.Roots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no root in " + s.Roots)
	}
	config := &tls.Config{RootCAs: roots, ServerName: s.Name}
	if s.Cert != "" {
		own, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	if s.Name == "" {
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			others := x509.NewCertPool()
			for _, each := range state.PeerCertificates[1:] {
				others.AddCert(each)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others})
			return err
		}
	}
	return credentials.NewTLS(config), nil
}

func dial(to lane, conn net.Conn) (*grpc.ClientConn, error) {
	creds, err := to.TLS.credentials()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)),
	}
	if conn != nil {
		options = append(options, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if conn == nil {
				return nil, errors.New("the connection was lost")
			}
			found := conn
			conn = nil
			return found, nil
		}))
	}
	return grpc.NewClient(to.Address, options...)
}

// ask sends one request, on a call that serves unary and streaming methods alike.
func ask(ctx context.Context, conn *grpc.ClientConn, method string, to lane, request []byte) (grpc.ClientStream, error) {
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(to.Metadata))
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream, stream.CloseSend()
}

// first is the answer's first message; whole are all of them.
func first(ctx context.Context, conn *grpc.ClientConn, method string, to lane, request []byte) ([][]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := ask(ctx, conn, method, to, request)
	if err != nil {
		return nil, err
	}
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return nil, err
	}
	if len(message) == 0 {
		return nil, fmt.Errorf("%s answered nothing", to.Address)
	}
	return [][]byte{message}, nil
}

func whole(ctx context.Context, conn *grpc.ClientConn, method string, to lane, request []byte) ([][]byte, error) {
	stream, err := ask(ctx, conn, method, to, request)
	if err != nil {
		return nil, err
	}
	var found [][]byte
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		found = append(found, message)
	}
}
