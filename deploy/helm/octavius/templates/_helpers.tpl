{{- define "octavius.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "octavius.selector" -}}
app.kubernetes.io/name: octavius
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "octavius.etcd.selector" -}}
app.kubernetes.io/name: etcd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: etcd
{{- end }}

{{- define "octavius.common" -}}
app.kubernetes.io/part-of: octavius
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "octavius.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "octavius.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* What a container may do at most. */}}
{{- define "octavius.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Whether the etcd of this chart is used: anything, or nothing. */}}
{{- define "octavius.etcd.isBundled" -}}
{{- if not .Values.etcd.endpoints }}yes{{ end }}
{{- end }}

{{/* The host under which a member of the bundled etcd is reached, by its number. */}}
{{- define "octavius.etcd.host" -}}
{{- $name := printf "%s-etcd" (include "octavius.fullname" .root) -}}
{{- if .root.Values.hostNetwork }}{{ .root.Values.listenAddress }}
{{- else }}{{ printf "%s-%d.%s.%s.svc" $name (int .number) $name .root.Release.Namespace }}{{ end }}
{{- end }}

{{/* Addresses of the etcd's members for clients, by commas. */}}
{{- define "octavius.etcd.clients" -}}
{{- if include "octavius.etcd.isBundled" . }}
{{- $hosts := list }}
{{- range $number := until (int .Values.etcd.bundled.replicas) }}
{{- $hosts = append $hosts (printf "http://%s:%d" (include "octavius.etcd.host" (dict "root" $ "number" $number)) (int $.Values.etcd.bundled.ports.client)) }}
{{- end }}
{{- join "," $hosts }}
{{- else }}{{ join "," .Values.etcd.endpoints }}{{ end }}
{{- end }}

{{/* controller_config.json, as a map. */}}
{{- define "octavius.config" -}}
{{- $config := dict
  "store" "etcd"
  "etcd_host" (include "octavius.etcd.clients" .)
  "etcd_prefix" .Values.etcd.prefix
  "etcd_quota_bytes" (int64 .Values.etcd.quotaBytes)
  "listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.grpc))
  "metrics_listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.metrics))
  "bootstrap_token_file" (printf "/etc/octavius/bootstrap/%s" .Values.bootstrapToken.key) }}
{{- if .Values.page.enabled }}
{{- $_ := set $config "page_listen" (printf "%s:%d" .Values.listenAddress (int .Values.ports.page)) }}
{{- if or .Values.page.behindTls .Values.page.ingress.enabled }}{{ $_ := set $config "page_behind_tls" true }}{{ end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $config "tls_cert" "/etc/octavius/tls/tls.crt" }}
{{- $_ := set $config "tls_key" "/etc/octavius/tls/tls.key" }}
{{- if .Values.tls.clientCa }}{{ $_ := set $config "client_ca" "/etc/octavius/tls/ca.crt" }}{{ end }}
{{- else if ne .Values.listenAddress "127.0.0.1" }}{{ $_ := set $config "insecure" true }}{{ end }}
{{- if .Values.encryptionKeys.existingSecret }}
{{- $files := list }}
{{- range .Values.encryptionKeys.keys }}{{ $files = append $files (printf "/etc/octavius/encryption/%s" .) }}{{ end }}
{{- $_ := set $config "encryption_key_files" $files }}
{{- end }}
{{- if .Values.webhooks.list }}
{{- $webhooks := list }}
{{- range .Values.webhooks.list }}
{{- $webhook := dict "secret_file" (printf "/etc/octavius/webhooks/%s" (.secret_file | default .name)) }}
{{- with .url_file }}{{ $_ := set $webhook "url_file" (printf "/etc/octavius/webhooks/%s" .) }}{{ end }}
{{- with .ca_file }}{{ $_ := set $webhook "ca_file" (printf "/etc/octavius/webhooks/%s" .) }}{{ end }}
{{- $webhooks = append $webhooks (merge $webhook .) }}
{{- end }}
{{- $_ := set $config "webhooks" $webhooks }}
{{- end }}
{{- if .Values.etcd.shared }}{{ $_ := set $config "etcd_shared" true }}{{ end }}
{{- with .Values.etcd.tls }}
{{- if .existingSecret }}{{ $_ := set $config "etcd_ca_file" "/etc/octavius/etcd/ca.crt" }}{{ end }}
{{- if .clientCertificate }}
{{- $_ := set $config "etcd_cert_file" "/etc/octavius/etcd/tls.crt" }}
{{- $_ := set $config "etcd_key_file" "/etc/octavius/etcd/tls.key" }}
{{- end }}
{{- end }}
{{- if .Values.etcd.auth.existingSecret }}{{ $_ := set $config "etcd_password_file" "/etc/octavius/etcd-auth/password" }}{{ end }}
{{- with .Values.archive.url }}{{ $_ := set $config "archive" . }}{{ end }}
{{- mergeOverwrite $config .Values.config | toPrettyJson }}
{{- end }}

{{/* What cannot be, told before anything is made. */}}
{{- define "octavius.check" -}}
{{- if not (or .Values.tls.existingSecret .Values.tls.insecure (eq .Values.listenAddress "127.0.0.1")) }}
{{- fail "without TLS tokens travel in the clear: name a Secret in tls.existingSecret, or say tls.insecure: true" }}
{{- end }}
{{- if and .Values.tls.clientCa (not .Values.tls.existingSecret) }}
{{- fail "tls.clientCa needs tls.existingSecret, whose ca.crt has signed the clients' certificates" }}
{{- end }}
{{- if and .Values.webhooks.list (not .Values.webhooks.existingSecret) }}
{{- fail "webhooks.list needs webhooks.existingSecret, whose keys hold what messages are signed with" }}
{{- end }}
{{- with .Values.page.ingress }}
{{- if and .enabled (not $.Values.page.enabled) }}
{{- fail "page.ingress leads to the page: it needs page.enabled: true" }}
{{- end }}
{{- if and .enabled (not .host) }}
{{- fail "page.ingress needs page.ingress.host, the name by which browsers reach the page" }}
{{- end }}
{{- end }}
{{- if and .Values.hostNetwork (include "octavius.etcd.isBundled" .) (ne .Values.listenAddress "127.0.0.1") }}
{{- fail "hostNetwork with the bundled etcd needs listenAddress 127.0.0.1: the etcd asks nobody who they are. Or name an etcd in etcd.endpoints" }}
{{- end }}
{{- if and .Values.hostNetwork (include "octavius.etcd.isBundled" .) (gt (int .Values.etcd.bundled.replicas) 1) }}
{{- fail "hostNetwork with the bundled etcd is for a single node: etcd.bundled.replicas must be 1" }}
{{- end }}
{{- if and .Values.etcd.tls.clientCertificate (not .Values.etcd.tls.existingSecret) }}
{{- fail "etcd.tls.clientCertificate needs etcd.tls.existingSecret, which holds tls.crt and tls.key" }}
{{- end }}
{{- if and (include "octavius.etcd.isBundled" .) (or .Values.etcd.tls.existingSecret .Values.etcd.auth.existingSecret) }}
{{- fail "etcd.tls and etcd.auth are for the etcd that etcd.endpoints names: the bundled one has neither" }}
{{- end }}
{{- end }}

{{/* Where a kubelet asks whether a container is well. */}}
{{- define "octavius.probe" -}}
path: {{ .path }}
port: metrics
{{- if eq .root.Values.listenAddress "127.0.0.1" }}
host: 127.0.0.1
{{- end }}
{{- end }}
