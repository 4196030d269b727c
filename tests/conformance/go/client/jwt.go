package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// jwtSource fetches through the sources that programs use, checks the token locally and by the server, and waits until
// the server renews it.
func jwtSource(ctx context.Context, address, audience string) error {
	option := workloadapi.WithClientOptions(workloadapi.WithAddr(address))
	source, err := workloadapi.NewJWTSource(ctx, option)
	if err != nil {
		return fmt.Errorf("jwt source: %w", err)
	}
	defer source.Close()
	bundles, err := workloadapi.NewBundleSource(ctx, option)
	if err != nil {
		return fmt.Errorf("bundle source: %w", err)
	}
	defer bundles.Close()
	params := jwtsvid.Params{Audience: audience, ExtraAudiences: []string{"other"}}
	svid, err := source.FetchJWTSVID(ctx, params)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	again, err := source.FetchJWTSVID(ctx, params)
	if err != nil {
		return fmt.Errorf("fetch again: %w", err)
	}
	token := svid.Marshal()
	for _, each := range []jwtbundleSource{source, bundles} {
		if _, err := jwtsvid.ParseAndValidate(token, each, []string{audience}); err != nil {
			return fmt.Errorf("validate: %w", err)
		}
		if _, err := jwtsvid.ParseAndValidate(token, each, []string{"wrong"}); err == nil {
			return fmt.Errorf("a wrong audience was accepted")
		}
	}
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	x509Bundle, err := bundles.GetX509BundleForTrustDomain(domain)
	if err != nil {
		return fmt.Errorf("x509 bundle: %w", err)
	}
	say(map[string]any{
		"id":          svid.ID.String(),
		"audience":    svid.Audience,
		"token":       token,
		"cached":      again.Marshal() == token,
		"authorities": len(x509Bundle.X509Authorities()),
	})
	for {
		fresh, err := source.FetchJWTSVID(ctx, params)
		if err != nil {
			return fmt.Errorf("renew: %w", err)
		}
		if fresh.Marshal() != token {
			say(map[string]any{"renewed": fresh.Expiry.After(svid.Expiry)})
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// validate asks the server, as a program without a JWT library does.
func validate(ctx context.Context, address, token, audience string) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address))
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	say(map[string]any{"id": svid.ID.String()})
	return nil
}
