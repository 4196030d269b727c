// Verifiers and a bundle endpoint as others wrote them, for a trust domain that they do not belong to: go-spiffe's
// federation client and handler, and go-oidc 2 and 3. The verb says which; each says what it saw, one JSON object a line.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

func say(line map[string]any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb string, arguments []string) error {
	switch verb {
	case "fetch-web":
		return fetchWeb(ctx, arguments[0], arguments[1], arguments[2])
	case "fetch-spiffe":
		return fetchSPIFFE(ctx, arguments[0], arguments[1], arguments[2], arguments[3])
	case "serve-web":
		return serveWeb(arguments[0], arguments[1], arguments[2], arguments[3])
	case "serve-spiffe":
		return serveSPIFFE(arguments[0], arguments[1], arguments[2], arguments[3])
	case "oidc":
		return logins(ctx, arguments[0], arguments[1], arguments[2])
	}
	return fmt.Errorf("unknown verb %q", verb)
}
