package main

import (
	"bufio"
	"context"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

const fetchTimeout = 10 * time.Second

type follower struct{}

func (follower) OnX509ContextUpdate(update *workloadapi.X509Context) {
	say(map[string]any{"serial": update.DefaultSVID().Certificates[0].SerialNumber.Text(16)})
}

func (follower) OnX509ContextWatchError(err error) {
	say(map[string]any{"ended": status.Code(err).String()})
}

// follow says each SVID of a watch, which the library opens again whenever it ends, and the status it ended with. At each
// line that it is sent it asks once more, and says what an X509Source holds beside it.
func follow(address string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address))
	if err != nil {
		return err
	}
	defer client.Close()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		return err
	}
	defer source.Close()
	go client.WatchX509Context(ctx, follower{})
	asked := bufio.NewScanner(os.Stdin)
	for asked.Scan() {
		line := map[string]any{}
		asking, done := context.WithTimeout(ctx, fetchTimeout)
		if svid, err := client.FetchX509SVID(asking); err != nil {
			line["fetched"] = status.Code(err).String()
		} else {
			line["fetched"] = svid.Certificates[0].SerialNumber.Text(16)
		}
		done()
		if svid, err := source.GetX509SVID(); err == nil {
			line["held"] = svid.Certificates[0].SerialNumber.Text(16)
		}
		say(line)
	}
	return asked.Err()
}
