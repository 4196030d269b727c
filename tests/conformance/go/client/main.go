// A workload that uses go-spiffe, or grpc-go with files, and says what it saw, one JSON object a line. The verb says what
// it does; `watch` says what the one-shot calls answer, then each X.509 context it is sent, verified as a peer would
// verify it, until it has seen as many as it was told.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errEnough = errors.New("seen enough")

type watcher struct {
	left int
	done context.CancelCauseFunc
}

func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svid := update.DefaultSVID()
	id, _, err := x509svid.Verify(svid.Certificates, update.Bundles)
	if err != nil {
		w.done(fmt.Errorf("verify: %w", err))
		return
	}
	say(map[string]any{"id": id.String(), "serial": svid.Certificates[0].SerialNumber.Text(16)})
	if w.left--; w.left == 0 {
		w.done(errEnough)
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	if status.Code(err) != codes.Canceled {
		w.done(fmt.Errorf("watch: %w", err))
	}
}

func say(line map[string]any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

// refused calls what the server does not have and says what it answered, by method.
func refused(ctx context.Context, client *workloadapi.Client) map[string]any {
	_, fetchWIT := client.FetchWITSVID(ctx, "")
	_, witBundles := client.FetchWITBundles(ctx)
	return map[string]any{
		"FetchWITSVID":    status.Code(fetchWIT).String(),
		"FetchWITBundles": status.Code(witBundles).String(),
	}
}

func watch(ctx context.Context, address string, updates int) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address))
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchX509SVID(ctx)
	if err != nil {
		return fmt.Errorf("svid: %w", err)
	}
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return fmt.Errorf("bundles: %w", err)
	}
	// The two calls are two feeds of one state: what one brings must verify with what the other brings.
	id, _, err := x509svid.Verify(svid.Certificates, bundles)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	say(map[string]any{"id": id.String(), "serial": svid.Certificates[0].SerialNumber.Text(16)})
	domains := []string{}
	for _, bundle := range bundles.Bundles() {
		domains = append(domains, bundle.TrustDomain().Name())
	}
	say(map[string]any{"domains": domains})
	say(refused(ctx, client))
	watching, done := context.WithCancelCause(ctx)
	err = client.WatchX509Context(watching, &watcher{left: updates, done: done})
	if cause := context.Cause(watching); errors.Is(cause, errEnough) {
		return nil
	} else if cause != nil {
		return cause
	}
	return err
}

// atMost ends who is left behind; what is ended by whom started it may go on for long.
func atMost(verb string) time.Duration {
	if verb == "tls-server" || verb == "traffic" || verb == "mesh" {
		return 20 * time.Minute
	}
	return 3 * time.Minute
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), atMost(os.Args[1]))
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb string, arguments []string) error {
	switch verb {
	case "watch":
		updates, err := strconv.Atoi(arguments[1])
		if err != nil {
			return err
		}
		return watch(ctx, arguments[0], updates)
	case "jwt":
		return jwtSource(ctx, arguments[0], arguments[1])
	case "validate":
		return validate(ctx, arguments[0], arguments[1], arguments[2])
	case "tls-server":
		return tlsServer(ctx, arguments[0], arguments[1])
	case "tls-client":
		return tlsClient(ctx, arguments[0], arguments[1], arguments[2], arguments[3])
	case "traffic":
		return traffic(ctx, arguments[0], arguments[1], arguments[2])
	case "mesh":
		return mesh(ctx, arguments[0], arguments[1], arguments[2], arguments[3:])
	case "follow":
		return follow(arguments[0])
	case "files":
		return files(ctx, arguments[0], arguments[1], arguments[2])
	}
	return fmt.Errorf("unknown verb %q", verb)
}
