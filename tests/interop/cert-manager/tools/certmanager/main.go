// Certmanager is as much of cert-manager as answers CertificateRequests and keeps Certificates: the controllers of both and of
// issuers, and the webhook that the API server asks. It approves requests only where it is told to.
//
// The path of this module lets it import what cert-manager's own programs are made of.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/cert-manager/cert-manager/internal/webhook"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	requestsca "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	requestsselfsigned "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	"github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca" // for its effect: the kind of issuer is registered
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/webhook/admission"
	"github.com/cert-manager/cert-manager/pkg/webhook/options"
)

type settings struct {
	kubeconfig, listen, certificate, key string
	approve                              bool
}

func main() {
	var given settings
	// One of its own: a package that is imported has a --kubeconfig in the common one.
	flags := flag.NewFlagSet("certmanager", flag.ExitOnError)
	flags.StringVar(&given.kubeconfig, "kubeconfig", "", "an administrator's")
	flags.StringVar(&given.listen, "listen", "", "where the webhook is served, HOST:PORT")
	flags.StringVar(&given.certificate, "certificate", "", "of the webhook, PEM")
	flags.StringVar(&given.key, "key", "", "its key, PEM")
	flags.BoolVar(&given.approve, "approve", false, "approve whatever is asked for")
	klog.InitFlags(flags)
	_ = flags.Parse(os.Args[1:])

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctrl.SetLogger(klog.Background())
	group, ctx := errgroup.WithContext(logs.NewContext(ctx, klog.Background()))
	group.Go(func() error { return given.control(ctx) })
	group.Go(func() error { return given.admit(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// control runs the controllers until the context ends.
func (given settings) control(ctx context.Context) error {
	wanted := []string{
		issuers.ControllerName, clusterissuers.ControllerName,
		requestsca.CRControllerName, requestsselfsigned.CRControllerName,
		trigger.ControllerName, keymanager.ControllerName, requestmanager.ControllerName, issuing.ControllerName,
		readiness.ControllerName,
	}
	if given.approve {
		wanted = append(wanted, approver.ControllerName)
	}
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         given.kubeconfig,
		KubernetesAPIQPS:   50,
		KubernetesAPIBurst: 100,
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: "cert-manager"},
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	var built []controller.Interface
	for _, name := range wanted {
		one, err := controller.Known()[name](factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		built = append(built, one)
	}
	// The controllers have said by now which informers they need.
	common, err := factory.Build()
	if err != nil {
		return err
	}
	common.SharedInformerFactory.Start(ctx.Done())
	common.KubeSharedInformerFactory.Start(ctx.Done())
	common.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
	for _, one := range built {
		group.Go(func() error { return one.Run(1, ctx) })
	}
	return group.Wait()
}

// admit serves the webhook's two handlers until the context ends: cert-manager's own server would listen everywhere.
func (given settings) admit(ctx context.Context) error {
	configuration, err := options.NewWebhookConfiguration()
	if err != nil {
		return err
	}
	configuration.KubeConfig = given.kubeconfig
	made, err := webhook.NewCertManagerWebhookServer(klog.FromContext(ctx), *configuration)
	if err != nil {
		return err
	}
	handlers := http.NewServeMux()
	handlers.Handle("POST /mutate", admission.NewCustomMutationWebhook(made.MutationWebhook))
	handlers.Handle("POST /validate", admission.NewCustomValidationWebhook(made.ResourceScheme, made.ValidationWebhook))
	server := http.Server{Addr: given.listen, Handler: handlers, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServeTLS(given.certificate, given.key); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}
