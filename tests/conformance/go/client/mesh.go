package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	pause = 50 * time.Millisecond
	// Whoever looked a name up before this one was taken out of it may still come.
	drain     = 8 * time.Second
	readyFile = "/tmp/ready"
	keptTexts = 20
)

// seen is what one of a mesh tells. Nothing is counted, and nothing fails, before all are there.
type seen struct {
	ID string `json:"id"`
	// Rounds are of calls to all others; Reached how many of these answered in the last one.
	Rounds  int `json:"rounds"`
	Reached int `json:"reached"`
	// Made are calls that were answered; Failed those that were not, and handshakes that failed as the one called.
	Made   int      `json:"made"`
	Failed int      `json:"failed"`
	Texts  []string `json:"texts"`
	// Through is whom the chain of its own SVID leads through, by the common name next to the root; Serials, how many
	// SVIDs it had.
	Through map[string]bool `json:"through"`
	Serials map[string]bool `json:"serials"`
}

type member struct {
	lock  sync.Mutex
	seen  seen
	own   *workloadapi.X509Source
	begin string
}

// mesh serves at :8443, and calls each peer (ID@HOST:PORT) again and again, each time over a new connection, until it is
// told to end (SIGTERM): then it calls nobody any more, and serves for a while yet. After each round the file has what
// it has seen. Until the file `begin` is there nothing counts.
func mesh(ctx context.Context, address, file, begin string, peers []string) error {
	ending, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	own, err := source(ending, address)
	if err != nil {
		return err
	}
	defer own.Close()
	svid, err := own.GetX509SVID()
	if err != nil {
		return err
	}
	here := &member{own: own, begin: begin, seen: seen{ID: svid.ID.String(), Through: map[string]bool{}, Serials: map[string]bool{}}}
	config := tlsconfig.MTLSServerConfig(own, own, tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain()))
	listener, err := net.Listen("tcp", ":8443")
	if err != nil {
		return err
	}
	defer listener.Close()
	go here.serve(listener, config)
	if err := os.WriteFile(readyFile, nil, 0o644); err != nil {
		return err
	}
	for ending.Err() == nil {
		here.round(ending, peers)
		if err := here.tell(file); err != nil {
			return err
		}
	}
	time.Sleep(drain)
	return here.tell(file)
}

func (m *member) round(ending context.Context, peers []string) {
	reached := 0
	for _, peer := range peers {
		if ending.Err() != nil {
			return
		}
		if m.done("calls "+peer, func() error { return m.call(peer) }) {
			reached++
		}
		time.Sleep(pause)
	}
	m.lock.Lock()
	defer m.lock.Unlock()
	m.seen.Rounds++
	m.seen.Reached = reached
}

func (m *member) call(peer string) error {
	id, server, _ := strings.Cut(peer, "@")
	svid, err := m.own.GetX509SVID()
	if err != nil {
		return err
	}
	chain := svid.Certificates
	m.lock.Lock()
	m.seen.Through[chain[len(chain)-1].Subject.CommonName] = true
	m.seen.Serials[chain[0].SerialNumber.Text(16)] = true
	m.lock.Unlock()
	config := tlsconfig.MTLSClientConfig(m.own, m.own, tlsconfig.AuthorizeID(spiffeid.RequireFromString(id)))
	connection, err := dialed(context.Background(), server, config)
	if err != nil {
		return err
	}
	defer connection.Close()
	// With TLS 1.3 a client hears only here that the server refused it.
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		return err
	}
	if line != m.seen.ID+"\n" {
		return fmt.Errorf("it takes this one for %q", line)
	}
	return nil
}

func (m *member) serve(listener net.Listener, config *tls.Config) {
	for {
		plain, err := listener.Accept()
		if err != nil {
			return
		}
		go m.done("is called", func() error {
			defer plain.Close()
			plain.SetDeadline(time.Now().Add(patience))
			secure := tls.Server(plain, config)
			if err := secure.Handshake(); err != nil {
				return err
			}
			_, err := fmt.Fprintln(secure, secure.ConnectionState().PeerCertificates[0].URIs[0])
			return err
		})
	}
}

// done does one side of a handshake, and counts it where it began after all were there.
func (m *member) done(what string, do func() error) bool {
	_, absent := os.Stat(m.begin)
	err := do()
	m.lock.Lock()
	defer m.lock.Unlock()
	switch {
	case absent != nil:
	case err == nil && what != "is called":
		m.seen.Made++
	case err != nil:
		m.seen.Failed++
		if len(m.seen.Texts) < keptTexts {
			m.seen.Texts = append(m.seen.Texts, fmt.Sprintf("%s %s: %s", time.Now().UTC().Format(time.RFC3339), what, err))
		}
	}
	return err == nil
}

func (m *member) tell(file string) error {
	m.lock.Lock()
	text, err := json.Marshal(m.seen)
	m.lock.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
