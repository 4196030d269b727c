// Speaks mutual TLS to a server for each pair of arguments: a pod's volume (layout spiffe) and the server's port. Says for
// each, in a line of JSON, whether it could, or at what it failed. Only the standard library, as it comes with each Go.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

type result struct {
	Version string `json:"version"`
	Error   string `json:"error"`
}

func speak(volume, port string) error {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(volume, "tls.crt"), filepath.Join(volume, "tls.key"))
	if err != nil {
		return err
	}
	authorities, err := os.ReadFile(filepath.Join(volume, "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		return errors.New("no authority could be read")
	}
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 20 * time.Second},
		Config: &tls.Config{
			Certificates: []tls.Certificate{certificate},
			RootCAs:      roots,
			ServerName:   "peer.test",
		},
	}
	connection, err := dialer.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(20 * time.Second))
	// The server says so once it has verified this side.
	_, err = io.ReadFull(connection, make([]byte, len("hi\n")))
	return err
}

func main() {
	for rest := os.Args[1:]; len(rest) >= 2; rest = rest[2:] {
		found := result{Version: runtime.Version()}
		if err := speak(rest[0], rest[1]); err != nil {
			found.Error = err.Error()
		}
		json.NewEncoder(os.Stdout).Encode(found)
	}
}
