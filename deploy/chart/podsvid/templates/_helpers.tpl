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

{{- /* Settings as YAML: lists as they are, everything else as text. */ -}}
{{- define "podsvid.settings" -}}
{{- range $name, $value := . }}
{{- if kindIs "slice" $value }}
{{ $name }}: {{ toJson $value }}
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
  "metrics_listen" "0.0.0.0:9099"
-}}
{{- with .Values.tracing.endpoint -}}{{- $_ := set $own "tracing_endpoint" . -}}{{- end -}}
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
  "metrics_listen" "0.0.0.0:9099"
  "startup_taint" .Values.startupTaint.enabled
-}}
{{- with .Values.tracing.endpoint -}}{{- $_ := set $own "tracing_endpoint" . -}}{{- end -}}
{{- if .Values.signer.stateKeySecret -}}
{{- $_ := set $own "state_key_file" "/var/run/podsvid-state-key/key" -}}
{{- end -}}
{{- if .Values.signer.upstreamSecret -}}
{{- $_ := set $own "upstream_cert_file" "/var/run/podsvid-upstream/tls.crt" -}}
{{- $_ := set $own "upstream_key_file" "/var/run/podsvid-upstream/tls.key" -}}
{{- end -}}
{{- include "podsvid.settings" (merge (deepCopy .Values.signer.settings) $own) }}
{{- end }}
