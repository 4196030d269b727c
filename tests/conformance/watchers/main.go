// A workload that follows the certificate of its volume by watching the file itself, as those do that know nothing of
// how a volume is replaced: by controller-runtime's certwatcher, or by fsnotify alone. Neither looks at a clock: what no
// event tells stays unknown. It ends well when it has seen as many certificates as it was told, and badly as soon as the
// one that it would serve has ended.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

const never = 24 * time.Hour

// byCertwatcher serves what controller-runtime does.
func byCertwatcher(ctx context.Context, certificate, key string) (func() (*tls.Certificate, error), error) {
	watcher, err := certwatcher.New(certificate, key)
	if err != nil {
		return nil, err
	}
	go watcher.WithWatchInterval(never).Start(ctx)
	return func() (*tls.Certificate, error) { return watcher.GetCertificate(nil) }, nil
}

// byFsnotify reads anew at each event of the certificate's file, as fsnotify's own documentation has it.
func byFsnotify(_ context.Context, certificate, key string) (func() (*tls.Certificate, error), error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(certificate); err != nil {
		return nil, err
	}
	var current atomic.Pointer[tls.Certificate]
	read := func() error {
		found, err := tls.LoadX509KeyPair(certificate, key)
		if err == nil {
			current.Store(&found)
		}
		return err
	}
	if err := read(); err != nil {
		return nil, err
	}
	go func() {
		for event := range watcher.Events {
			if event.Has(fsnotify.Remove) {
				watcher.Add(certificate)
			}
			if err := read(); err != nil {
				fmt.Fprintln(os.Stderr, event, err)
			}
		}
	}()
	return func() (*tls.Certificate, error) { return current.Load(), nil }, nil
}

func follow(get func() (*tls.Certificate, error), wanted int) error {
	serials, least := map[string]bool{}, never
	for len(serials) < wanted {
		found, err := get()
		if err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(found.Certificate[0])
		if err != nil {
			return err
		}
		serials[leaf.SerialNumber.Text(16)] = true
		left := time.Until(leaf.NotAfter)
		if left <= 0 {
			return fmt.Errorf("after %d certificates the one in service has ended", len(serials))
		}
		least = min(least, left)
		time.Sleep(20 * time.Millisecond)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"serials": len(serials), "least_seconds": least.Seconds()})
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(how, directory, certificates string) error {
	wanted, err := strconv.Atoi(certificates)
	if err != nil {
		return err
	}
	by := map[string]func(context.Context, string, string) (func() (*tls.Certificate, error), error){
		"certwatcher": byCertwatcher,
		"fsnotify":    byFsnotify,
	}[how]
	get, err := by(context.Background(), filepath.Join(directory, "tls.crt"), filepath.Join(directory, "tls.key"))
	if err != nil {
		return err
	}
	return follow(get, wanted)
}
