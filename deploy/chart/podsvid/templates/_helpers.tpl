{{- /* Every template begins with it. `helm upgrade --reuse-values` brings the values of the chart before, whole: what was
not known then is missing from them, and gets its default here. What somebody set is left alone, false and empty too. */ -}}
{{- define "podsvid.complete" -}}
{{- include "podsvid.fill" (dict "values" .Values "defaults" (.Files.Get "files/defaults.yaml" | fromYaml)) -}}
{{- end }}

{{- /* Maps that are whole in themselves, such as resources, are not filled: what is not in them was left out. */ -}}
{{- define "podsvid.fill" -}}
{{- $values := .values -}}
{{- range $name, $default := .defaults -}}
{{- if kindIs "invalid" (index $values $name) -}}
{{- $_ := set $values $name $default -}}
{{- else if and (kindIs "map" $default) (not (has $name (list "resources" "labels"))) -}}
{{- include "podsvid.fill" (dict "values" (index $values $name) "defaults" $default) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "podsvid.labels" -}}
app.kubernetes.io/name: podsvid
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "podsvid.selector" -}}
app.kubernetes.io/name: podsvid
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "podsvid.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* The names of the CSI drivers, without profiles, separated by commas. */ -}}
{{- define "podsvid.driverNames" -}}
{{- $names := list -}}
{{- range .Values.drivers -}}{{- $names = append $names (splitList "=" . | first) -}}{{- end -}}
{{- join "," $names -}}
{{- end }}

{{- define "podsvid.signerAddress" -}}
{{ .Values.signer.address | default (printf "podsvid-signer.%s.svc:8443" .Release.Namespace) }}
{{- end }}

{{- define "podsvid.bundleName" -}}
{{ .Values.signer.settings.bundle_config_map | default "podsvid-bundle" }}
{{- end }}

{{- define "podsvid.stateSecret" -}}
{{ .Values.signer.settings.state_secret | default "podsvid-authority" }}
{{- end }}

{{- /* The trust domain is in every ID and every authority: signers refuse the Secret of another one, and agents mint in
vain. What is published tells it, since only a signer that runs writes it; without that the configuration does. */ -}}
{{- define "podsvid.checkTrustDomain" -}}
{{- $there := "" -}}
{{- $published := lookup "v1" "ConfigMap" .Release.Namespace (include "podsvid.bundleName" .) -}}
{{- $configured := lookup "v1" "ConfigMap" .Release.Namespace "podsvid-signer" -}}
{{- $wanted := .Values.trustDomain -}}
{{- if $published -}}
{{- $there = index ($published.metadata.labels | default dict) "podsvid.io/trust-domain" | default "" -}}
{{- /* As the signer makes a label of it. */ -}}
{{- $wanted = .Values.trustDomain | trunc 63 | trimAll "-._" -}}
{{- else if $configured -}}
{{- $there = (index ($configured.data | default dict) "signer.yaml" | default "" | fromYaml).trust_domain | default "" -}}
{{- end -}}
{{- if and $there (ne $there $wanted) -}}
{{- fail (printf "trustDomain: namespace %s has the CA of trust domain %s, and these values say %s. Nothing was changed. An upgrade does not move a trust domain: set it back, or see \"Another trust domain\" in docs/operations.md for what that takes" .Release.Namespace $there .Values.trustDomain) -}}
{{- end -}}
{{- end }}

{{- /* Signers that find no Secret of the name that they are given make a new CA, which no running workload trusts. */ -}}
{{- define "podsvid.checkStateSecret" -}}
{{- $configured := lookup "v1" "ConfigMap" .Release.Namespace "podsvid-signer" -}}
{{- $wanted := include "podsvid.stateSecret" . -}}
{{- if $configured -}}
{{- $there := (index ($configured.data | default dict) "signer.yaml" | default "" | fromYaml).state_secret | default "podsvid-authority" -}}
{{- if and (ne $there $wanted) (lookup "v1" "Secret" .Release.Namespace $there) (not (lookup "v1" "Secret" .Release.Namespace $wanted)) -}}
{{- fail (printf "signer.settings.state_secret: the CA is in Secret %s of namespace %s, and there is no Secret %s: signers would make a new CA that no running workload trusts. Nothing was changed. Set it back, or copy the Secret to its new name first" $there .Release.Namespace $wanted) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* What profile hostile cannot do without, said all at once. */ -}}
{{- define "podsvid.checkProfile" -}}
{{- if eq .Values.profile "hostile" -}}
{{- $lacks := list -}}
{{- if not .Values.signer.stateKeySecret -}}
{{- $lacks = append $lacks "signer.stateKeySecret: the Secret whose key `key` (32 bytes) encrypts the authorities, or a copy of etcd is the CA" -}}
{{- end -}}
{{- /* Not `default`: to it, false is nothing. */ -}}
{{- if and (hasKey .Values.signer.settings "require_policy") (ne (toString .Values.signer.settings.require_policy) "true") -}}
{{- $lacks = append $lacks "signer.settings.require_policy left out or true: no pod gets an identity that no policy gives" -}}
{{- end -}}
{{- if not .Values.networkPolicy.enabled -}}
{{- $lacks = append $lacks "networkPolicy.enabled: the ports are for agents, scrapers and probers only" -}}
{{- end -}}
{{- if and .Values.agent.hostNetwork (not .Values.networkPolicy.agents) -}}
{{- $lacks = append $lacks "networkPolicy.agents with the nodes' addresses: agents on the hosts' network are not known by their pods" -}}
{{- end -}}
{{- if and .Values.ttl.podMax (ne .Values.ttl.podMax .Values.ttl.x509) (not (hasKey .Values.signer.settings "x509_max_ttl")) -}}
{{- $lacks = append $lacks "ttl.podMax left out: what a pod's author asks for is never above ttl.x509, or say signer.settings.x509_max_ttl" -}}
{{- end -}}
{{- if not .Values.admissionPolicy.enabled -}}
{{- $lacks = append $lacks "admissionPolicy.enabled: RBAC alone lets the signer write its own configuration" -}}
{{- end -}}
{{- if $lacks -}}
{{- fail (printf "profile hostile needs\n- %s" (join "\n- " $lacks)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Made before the guard's Job, gone with it, whatever it found. */ -}}
{{- define "podsvid.guardRights" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}

{{- /* Settings as YAML: lists and maps as they are, everything else as text. Helm's numbers are floating-point ones. */ -}}
{{- define "podsvid.settings" -}}
{{- range $name, $value := . }}
{{- if or (kindIs "slice" $value) (kindIs "map" $value) }}
{{ $name }}: {{ toJson $value }}
{{- else if kindIs "float64" $value }}
{{ $name }}: {{ int64 $value | toString | quote }}
{{- else }}
{{ $name }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "podsvid.agentConfig" -}}
{{- $own := dict
  "trust_domain" .Values.trustDomain
  "driver_names" .Values.drivers
  "kubelet_root" .Values.kubelet.root
  "authority" "signer"
  "signer_address" (include "podsvid.signerAddress" .)
  "signer_bundle" "/var/run/podsvid-bundle/bundle.json"
  "agent_token_file" "/var/run/secrets/podsvid/token"
  "signer_audience" .Values.audience
  "metrics_listen" "[::]:9099"
  "health_listen" "[::]:9098"
-}}
{{- with .Values.tracing.endpoint -}}{{- $_ := set $own "tracing_endpoint" . -}}{{- end -}}
{{- if eq .Values.profile "hostile" -}}
{{- $_ := set $own "socket_connections" "32" -}}
{{- $_ := set $own "socket_calls" "256" -}}
{{- $_ := set $own "socket_rate" "100" -}}
{{- $_ := set $own "socket_burst" "400" -}}
{{- end -}}
{{- include "podsvid.settings" (merge (deepCopy .Values.agent.settings) $own) }}
{{- end }}

{{- define "podsvid.signerConfig" -}}
{{- $own := dict
  "trust_domain" .Values.trustDomain
  "driver_names" (include "podsvid.driverNames" . | splitList ",")
  "audience" .Values.audience
  "x509_ttl" .Values.ttl.x509
  "jwt_ttl" .Values.ttl.jwt
  "namespace" .Release.Namespace
  "metrics_listen" "[::]:9099"
  "health_listen" "[::]:9098"
  "startup_taint" .Values.startupTaint.enabled
  "pod_certificates" .Values.podCertificates.enabled
-}}
{{- with .Values.istio -}}
{{- if .enabled -}}
{{- $_ := set $own "istio_listen" "[::]:8446" -}}
{{- with .names -}}{{- $_ := set $own "istio_names" . -}}{{- end -}}
{{- $_ := set $own "istio_ztunnels" .ztunnels -}}
{{- $_ := set $own "istio_clusters" .clusters -}}
{{- if has .rootConfigMap (list (include "podsvid.bundleName" $) (printf "%s-abandoned" (include "podsvid.stateSecret" $)) "podsvid-signer") -}}
{{- fail (printf "istio.rootConfigMap: %s is another ConfigMap of podsvid's; choose another name (Istio's proxies read istio-ca-root-cert)" .rootConfigMap) -}}
{{- end -}}
{{- $_ := set $own "istio_root_config_map" .rootConfigMap -}}
{{- end -}}
{{- end -}}
{{- with .Values.ttl.podMax -}}{{- $_ := set $own "x509_pod_max_ttl" . -}}{{- end -}}
{{- if eq .Values.profile "hostile" -}}
{{- $_ := set $own "require_policy" "true" -}}
{{- $_ := set $own "x509_max_ttl" .Values.ttl.x509 -}}
{{- $_ := set $own "jwt_max_ttl" .Values.ttl.jwt -}}
{{- $_ := set $own "node_rate" "20" -}}
{{- $_ := set $own "node_burst" "300" -}}
{{- $_ := set $own "node_concurrency" "32" -}}
{{- end -}}
{{- with .Values.tracing.endpoint -}}{{- $_ := set $own "tracing_endpoint" . -}}{{- end -}}
{{- if .Values.signer.stateKeySecret -}}
{{- $_ := set $own "state_key_file" "/var/run/podsvid-state-key/key" -}}
{{- end -}}
{{- with .Values.signer.bundle -}}
{{- if .enabled -}}
{{- $_ := set $own "bundle_listen" "[::]:8444" -}}
{{- $_ := set $own "bundle_profile" .profile -}}
{{- if eq .profile "https_web" -}}
{{- if not .certSecret -}}{{- fail "signer.bundle.certSecret: name the Secret whose tls.crt and tls.key prove the listener, or choose profile https_spiffe" -}}{{- end -}}
{{- $_ := set $own "bundle_cert_file" "/var/run/podsvid-bundle/tls.crt" -}}
{{- $_ := set $own "bundle_key_file" "/var/run/podsvid-bundle/tls.key" -}}
{{- else if .certSecret -}}
{{- fail "signer.bundle.certSecret: the profile https_spiffe uses none; choose https_web, or leave it out" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.signer.oidc -}}
{{- if .enabled -}}
{{- if not .certSecret -}}{{- fail "signer.oidc.certSecret: name the Secret whose tls.crt and tls.key prove the listener" -}}{{- end -}}
{{- if not $.Values.signer.settings.jwt_issuer -}}{{- fail "signer.settings.jwt_issuer: verifiers look up the keys of tokens that name an issuer; set it to the URL of the documents" -}}{{- end -}}
{{- $_ := set $own "oidc_listen" "[::]:8445" -}}
{{- $_ := set $own "oidc_cert_file" "/var/run/podsvid-oidc/tls.crt" -}}
{{- $_ := set $own "oidc_key_file" "/var/run/podsvid-oidc/tls.key" -}}
{{- end -}}
{{- end -}}
{{- include "podsvid.checkOneAbove" . -}}
{{- if .Values.signer.upstreamSecret -}}
{{- $_ := set $own "upstream_dir" "/var/run/podsvid-upstream" -}}
{{- end -}}
{{- with .Values.signer.openbao -}}
{{- if .address -}}
{{- $_ := set $own "upstream" "openbao" -}}
{{- $_ := set $own "openbao_address" .address -}}
{{- if and (hasPrefix "https://" .address) (not .caSecret) -}}
{{- fail "signer.openbao.caSecret: name the Secret whose ca.crt is the CA of OpenBao's server certificate" -}}
{{- end -}}
{{- if eq (include "podsvid.openbaoAuth" $) "kubernetes" -}}
{{- $_ := set $own "openbao_role" .role -}}
{{- $_ := set $own "openbao_token_file" "/var/run/podsvid-openbao/token" -}}
{{- end -}}
{{- if .caSecret -}}{{- $_ := set $own "openbao_ca_file" "/var/run/podsvid-openbao-files/ca.crt" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.signer.certManager -}}
{{- if .issuerName -}}
{{- $_ := set $own "upstream" "cert-manager" -}}
{{- $_ := set $own "cert_manager_issuer_name" .issuerName -}}
{{- $_ := set $own "cert_manager_issuer_kind" .issuerKind -}}
{{- $_ := set $own "cert_manager_issuer_group" .issuerGroup -}}
{{- $_ := set $own "cert_manager_namespace" (include "podsvid.certManagerNamespace" $) -}}
{{- if .rootsConfigMap -}}{{- $_ := set $own "upstream_bundle_file" "/var/run/podsvid-upstream-roots/ca.crt" -}}{{- end -}}
{{- else if .rootsConfigMap -}}
{{- fail "signer.certManager.rootsConfigMap: nothing is asked of cert-manager; set signer.certManager.issuerName, or leave it out" -}}
{{- end -}}
{{- end -}}
{{- with .Values.signer.awsPca.arns -}}
{{- $_ := set $own "upstream" "aws-pca" -}}
{{- $_ := set $own "aws_pca_arns" . -}}
{{- end -}}
{{- with .Values.signer.googleCas -}}
{{- if .pool -}}
{{- $_ := set $own "upstream" "google-cas" -}}
{{- $_ := set $own "google_cas_pool" .pool -}}
{{- if .ca -}}{{- $_ := set $own "google_cas_ca" .ca -}}{{- end -}}
{{- else if .ca -}}
{{- fail "signer.googleCas.ca: nothing is asked of Google; set signer.googleCas.pool, or leave it out" -}}
{{- end -}}
{{- end -}}
{{- with .Values.signer.spire -}}
{{- if .address -}}
{{- $_ := set $own "upstream" "spire" -}}
{{- $_ := set $own "spire_address" .address -}}
{{- $_ := set $own "spire_spiffe_id" (required "signer.spire.spiffeId: say by which SPIFFE ID the SPIRE server knows the signer (docs/spire-upstream.md)" .spiffeId) -}}
{{- if .svidSecret -}}
{{- $_ := set $own "spire_svid_dir" "/var/run/podsvid-spire-svid" -}}
{{- else -}}
{{- if not .hostPath -}}
{{- $driver := .csiDriver -}}
{{- range $.Values.drivers -}}
{{- if eq $driver (first (splitList "=" .)) -}}
{{- fail (printf "signer.spire.csiDriver: %s is podsvid's own (drivers), and gives no SVID of SPIRE's; set signer.spire.hostPath to the directory of the SPIRE agent's socket, or signer.spire.svidSecret" $driver) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $own "spire_agent_socket" (printf "/var/run/podsvid-spire/%s" .socket) -}}
{{- end -}}
{{- else if or .hostPath .spiffeId .svidSecret -}}
{{- fail "signer.spire: nothing is asked of a SPIRE server; set signer.spire.address, or leave the others out" -}}
{{- end -}}
{{- end -}}
{{- include "podsvid.settings" (merge (deepCopy .Values.signer.settings) $own) }}
{{- end }}

{{- define "podsvid.checkOneAbove" -}}
{{- $above := list -}}
{{- with .Values.signer -}}
{{- if .upstreamSecret -}}{{- $above = append $above "signer.upstreamSecret" -}}{{- end -}}
{{- if .openbao.address -}}{{- $above = append $above "signer.openbao.address" -}}{{- end -}}
{{- if .certManager.issuerName -}}{{- $above = append $above "signer.certManager.issuerName" -}}{{- end -}}
{{- if .awsPca.arns -}}{{- $above = append $above "signer.awsPca.arns" -}}{{- end -}}
{{- if .googleCas.pool -}}{{- $above = append $above "signer.googleCas.pool" -}}{{- end -}}
{{- if .spire.address -}}{{- $above = append $above "signer.spire.address" -}}{{- end -}}
{{- end -}}
{{- if gt (len $above) 1 -}}
{{- fail (printf "%s: there is one CA above; set one of them" (join " and " $above)) -}}
{{- end -}}
{{- end }}

{{- /* Where CertificateRequests are made. */ -}}
{{- define "podsvid.certManagerNamespace" -}}
{{- .Values.signer.certManager.namespace | default .Release.Namespace -}}
{{- end }}

{{- /* How the signer logs in to OpenBao. */ -}}
{{- define "podsvid.openbaoAuth" -}}
{{- .Values.signer.settings.openbao_auth | default "kubernetes" -}}
{{- end }}
