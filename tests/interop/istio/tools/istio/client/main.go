// Istio-ca-client asks a CA of Istio for certificates: one question a line of its input, one answer a line of its output.
//
// As a sidecar it asks with Istio's own client; as a ztunnel, which is no Go program, with Istio's own messages and
// connection, and does with the answer what ztunnel does.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	istiogrpc "istio.io/istio/pilot/pkg/grpc"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher"
	"istio.io/istio/security/pkg/nodeagent/caclient"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	pkiutil "istio.io/istio/security/pkg/pki/util"
)

// question is what to ask for; Token and Cluster are those of the flags where they are empty.
type question struct {
	// The URI of the request; several, or names of DNS, with commas between.
	URI     string `json:"uri"`
	Seconds int64  `json:"seconds"`
	// As ztunnel: for this identity, which is the request's too where URI is empty.
	Impersonate string `json:"impersonate"`
	// ECDSA, or a sidecar's default.
	EC      bool              `json:"ec"`
	Token   string            `json:"token"`
	Cluster *string           `json:"cluster"`
	Headers map[string]string `json:"headers"`
	// A CertSigner, which a sidecar names where its mesh has several.
	Signer string `json:"signer"`
}

// answer is what came of it, or why nothing did.
type answer struct {
	Error string   `json:"error"`
	Chain []string `json:"chain"`
	Key   string   `json:"key"`
	URIs  []string `json:"uris"`
	// From its beginning, as the certificate says.
	Seconds float64 `json:"seconds"`
	Took    float64 `json:"took"`
}

type settings struct {
	ca, name, roots, token, cluster string
}

func main() {
	var given settings
	flag.StringVar(&given.ca, "ca", "", "HOST:PORT")
	flag.StringVar(&given.name, "name", "", "what the CA's certificate must be for, where that is not HOST")
	flag.StringVar(&given.roots, "roots", "", "whom its certificate is of, PEM")
	flag.StringVar(&given.token, "token", "", "a file with the pod's token")
	flag.StringVar(&given.cluster, "cluster", "", "the name of the cluster")
	flag.Parse()
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := log.Configure(options); err != nil {
		fatal(err)
	}
	sidecar, err := newSidecar(given)
	if err != nil {
		fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fatal(err)
		}
		begun := time.Now()
		found, err := sidecar.answer(given, asked)
		found.Took = time.Since(begun).Seconds()
		if err != nil {
			found.Error = err.Error()
		}
		if err := out.Encode(found); err != nil {
			fatal(err)
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// sidecar has the client that lives as long as the program does: an agent has one.
type sidecar struct {
	options *security.Options
	client  *citadel.CitadelClient
}

func newSidecar(given settings) (*sidecar, error) {
	options, err := optionsOf(given, question{})
	if err != nil {
		return nil, err
	}
	client, err := citadel.NewCitadelClient(options, &citadel.TLSOptions{RootCert: given.roots})
	if err != nil {
		return nil, err
	}
	return &sidecar{options, client}, nil
}

func optionsOf(given settings, asked question) (*security.Options, error) {
	token, cluster := given.token, given.cluster
	if asked.Token != "" {
		token = asked.Token
	}
	if asked.Cluster != nil {
		cluster = *asked.Cluster
	}
	fetcher, err := credentialfetcher.NewCredFetcher(security.JWT, "", token, "")
	if err != nil {
		return nil, err
	}
	return &security.Options{
		CAEndpoint:    given.ca,
		CAEndpointSAN: given.name,
		ClusterID:     cluster,
		CredFetcher:   fetcher,
		CAHeaders:     asked.Headers,
		CertSigner:    asked.Signer,
	}, nil
}

func (s *sidecar) answer(given settings, asked question) (answer, error) {
	if asked.Impersonate != "" {
		return ztunnel(given, asked)
	}
	client := s.client
	if asked.Token != "" || asked.Cluster != nil || asked.Headers != nil || asked.Signer != "" {
		options, err := optionsOf(given, asked)
		if err != nil {
			return answer{}, err
		}
		if client, err = citadel.NewCitadelClient(options, &citadel.TLSOptions{RootCert: given.roots}); err != nil {
			return answer{}, err
		}
		defer client.Close()
	}
	// As security/pkg/nodeagent/cache does.
	wanted := pkiutil.CertOptions{Host: asked.URI, RSAKeySize: 2048}
	if asked.EC {
		wanted.ECSigAlg, wanted.ECCCurve = pkiutil.EcdsaSigAlg, pkiutil.P256Curve
	}
	csr, key, err := pkiutil.GenCSR(wanted)
	if err != nil {
		return answer{}, err
	}
	chain, err := client.CSRSign(csr, asked.Seconds)
	if err != nil {
		return answer{}, err
	}
	return checked(chain, key)
}

func ztunnel(given settings, asked question) (answer, error) {
	options, err := optionsOf(given, asked)
	if err != nil {
		return answer{}, err
	}
	dial, err := istiogrpc.ClientOptions(
		nil, &istiogrpc.TLSOptions{RootCert: given.roots, ServerAddress: given.ca, SAN: given.name},
	)
	if err != nil {
		return answer{}, err
	}
	// It repeats nothing at once.
	conn, err := grpc.NewClient(
		given.ca, append(dial, grpc.WithPerRPCCredentials(caclient.NewDefaultTokenProvider(options)))...,
	)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	uri := asked.URI
	if uri == "" {
		uri = asked.Impersonate
	}
	csr, key, err := ztunnelRequest(uri)
	if err != nil {
		return answer{}, err
	}
	meta, err := structpb.NewStruct(map[string]any{security.ImpersonatedIdentity: asked.Impersonate})
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if options.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", options.ClusterID)
	}
	request := &pb.IstioCertificateRequest{Csr: csr, ValidityDuration: asked.Seconds, Metadata: meta}
	found, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, request)
	if err != nil {
		return answer{}, err
	}
	told, err := checked(found.CertChain, key)
	if err == nil && (len(told.URIs) != 1 || told.URIs[0] != asked.Impersonate) {
		err = fmt.Errorf("asked for %s, got %v", asked.Impersonate, told.URIs)
	}
	return told, err
}

// ztunnelRequest is for a P-256 key, with no subject and a critical name.
func ztunnelRequest(uri string) (string, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	names, err := pkiutil.BuildSubjectAltNameExtension(uri)
	if err != nil {
		return "", nil, err
	}
	template := &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{*names}}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return "", nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

// checked is a chain that holds: one certificate an element and all roots in the last, the first of this key and, by what
// lies between, below one of the roots.
func checked(chain []string, key []byte) (answer, error) {
	told := answer{Chain: chain, Key: string(key)}
	if len(chain) < 2 {
		return told, fmt.Errorf("a chain of %d", len(chain))
	}
	var between []*x509.Certificate
	for _, each := range chain[:len(chain)-1] {
		found, err := certificates(each)
		if err != nil {
			return told, err
		}
		if len(found) != 1 {
			return told, fmt.Errorf("%d certificates in one element", len(found))
		}
		between = append(between, found[0])
	}
	anchors, err := certificates(chain[len(chain)-1])
	if err != nil {
		return told, err
	}
	if _, err := tls.X509KeyPair([]byte(chain[0]), key); err != nil {
		return told, err
	}
	leaf, roots, others := between[0], x509.NewCertPool(), x509.NewCertPool()
	for _, each := range leaf.URIs {
		told.URIs = append(told.URIs, each.String())
	}
	told.Seconds = leaf.NotAfter.Sub(leaf.NotBefore).Seconds()
	for _, each := range anchors {
		roots.AddCert(each)
	}
	for _, each := range between[1:] {
		others.AddCert(each)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		how := x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := leaf.Verify(how); err != nil {
			return told, err
		}
	}
	return told, nil
}

func certificates(text string) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	rest := []byte(text)
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		each, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		found, rest = append(found, each), after
	}
	if len(found) == 0 {
		return nil, errors.New("an element without a certificate")
	}
	return found, nil
}
