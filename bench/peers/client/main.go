// The one client that SPIRE and podsvid are asked with. It knows neither: whom to ask, and what, is a plan in JSON in a
// file, and messages are bytes.
//
//	client call PLAN       ask all requests, and say how long each took
//	client streams PLAN    a stream for each lane: say when all are open, and of each round when the first and the
//	                       last was told, until standard input ends
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// lane is a connection: requests on it are asked in order, as many at once as there are workers for it.
type lane struct {
	Address  string
	Gid      int
	TLS      *secured
	Metadata map[string]string
	Requests [][]byte
}

// plan has workers that share the lanes. Connect: a connection for each request, until its first message; Keep: show
// the answers; Settle: seconds that connections are old before the first request.
type plan struct {
	Method   string
	Parallel int
	Connect  bool
	Keep     bool
	Settle   float64
	Lanes    []lane
}

const prSetDumpable = 4

func init() { runtime.LockOSThread() } // main's thread is the one whose group others see as the process's

func say(line any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func ready(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("%s is not ready", conn.Target())
		}
	}
	return nil
}

type asked struct {
	took    []float64
	answers [][]byte
	err     error
}

func call(ctx context.Context, of plan) error {
	conns := make([]*grpc.ClientConn, len(of.Lanes))
	if !of.Connect {
		for number, to := range of.Lanes {
			conn, err := dial(to, nil)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := ready(ctx, conn); err != nil {
				return err
			}
			conns[number] = conn
		}
	}
	time.Sleep(time.Duration(of.Settle * float64(time.Second)))
	next := make([]atomic.Int64, len(of.Lanes))
	found := make([]asked, of.Parallel)
	var all sync.WaitGroup
	started := time.Now()
	for worker := range of.Parallel {
		all.Go(func() {
			number, own := worker%len(of.Lanes), &found[worker]
			to := of.Lanes[number]
			for own.err == nil {
				at := int(next[number].Add(1)) - 1
				if at >= len(to.Requests) {
					return
				}
				began := time.Now()
				answers, err := once(ctx, of, conns[number], to, to.Requests[at])
				own.took = append(own.took, float64(time.Since(began).Nanoseconds())/1e6)
				own.err = err
				if of.Keep {
					own.answers = append(own.answers, answers...)
				}
			}
		})
	}
	all.Wait()
	lasted := time.Since(started).Seconds()
	took, answers := []float64{}, [][]byte{}
	for _, each := range found {
		if each.err != nil {
			return each.err
		}
		took = append(took, each.took...)
		answers = append(answers, each.answers...)
	}
	say(map[string]any{"seconds": lasted, "ms": took, "answers": answers})
	return nil
}

func once(ctx context.Context, of plan, conn *grpc.ClientConn, to lane, request []byte) ([][]byte, error) {
	if conn != nil {
		return whole(ctx, conn, of.Method, to, request)
	}
	conn, err := dial(to, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return first(ctx, conn, of.Method, to, request)
}

// become makes the process one of that group, as far as an agent that looks at it can tell. Such a process is hidden
// from others unless it says that it may be seen.
func become(group int) error {
	if _, _, failed := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(group), uintptr(group), uintptr(group)); failed != 0 {
		return failed
	}
	if _, _, failed := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 1, 0); failed != 0 {
		return failed
	}
	return nil
}

// After so long without a message the next one begins another round. A loaded machine pauses in the midst of one, too.
const pause = 3 * time.Second

// told is when streams had their messages after the first: a round is a burst in which each had one.
type told struct {
	sync.Mutex
	had         []bool
	left        int
	begun, last time.Time
}

func seconds(at time.Time) float64 { return float64(at.UnixNano()) / 1e9 }

func (t *told) add(number int) {
	now := time.Now()
	t.Lock()
	defer t.Unlock()
	if now.Sub(t.last) > pause {
		clear(t.had)
		t.left, t.begun = len(t.had), now
	}
	t.last = now
	if t.had[number] {
		return
	}
	t.had[number] = true
	if t.left--; t.left == 0 {
		say(map[string]any{"first": seconds(t.begun), "last": seconds(now)})
	}
}

func streams(ctx context.Context, of plan) error {
	own := os.Getgid()
	failed := make(chan error, len(of.Lanes))
	seen := &told{had: make([]bool, len(of.Lanes))}
	for number, to := range of.Lanes {
		if to.Gid != own {
			if err := become(to.Gid); err != nil {
				return fmt.Errorf("group %d: %w", to.Gid, err)
			}
		}
		// Here, and not by gRPC: who connects is who this thread is.
		plain, err := net.Dial("unix", strings.TrimPrefix(to.Address, "unix:"))
		if err != nil {
			return err
		}
		conn, err := dial(to, plain)
		if err != nil {
			return err
		}
		defer conn.Close()
		stream, err := ask(ctx, conn, of.Method, to, to.Requests[0])
		if err != nil {
			return err
		}
		var message []byte
		if err := stream.RecvMsg(&message); err != nil {
			return fmt.Errorf("stream %d: %w", number, err)
		}
		go func() {
			for {
				if err := stream.RecvMsg(&message); err != nil {
					failed <- fmt.Errorf("stream %d: %w", number, err)
					return
				}
				seen.add(number)
			}
		}()
	}
	say(map[string]any{"ready": len(of.Lanes)})
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case err := <-failed:
		return err
	}
}

func run(arguments []string) error {
	if len(arguments) != 2 {
		return errors.New("client call|streams PLAN")
	}
	text, err := os.ReadFile(arguments[1])
	if err != nil {
		return err
	}
	var of plan
	if err := json.Unmarshal(text, &of); err != nil {
		return err
	}
	if len(of.Lanes) == 0 {
		return errors.New("the plan has no lanes")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	switch arguments[0] {
	case "call":
		return call(ctx, of)
	case "streams":
		return streams(ctx, of)
	}
	return errors.New("client call|streams PLAN")
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
