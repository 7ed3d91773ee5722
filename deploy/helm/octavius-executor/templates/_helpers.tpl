{{- define "executor.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "executor.selector" -}}
app.kubernetes.io/name: octavius-executor
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: executor
{{- end }}

{{- define "executor.common" -}}
app.kubernetes.io/part-of: octavius
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "executor.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "executor.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* executor_config.json, as a map. */}}
{{- define "executor.config" -}}
{{- $others := list }}
{{- range rest .Values.namespaces }}{{ $others = append $others .name }}{{ end }}
{{- $config := dict
  "runner" "kubernetes"
  "cp_host" (join "," .Values.controllers)
  "labels" .Values.labels
  "capacity" (int .Values.capacity)
  "default_namespace" (first .Values.namespaces).name }}
{{- with .Values.tls }}
{{- if .caSecret }}{{ $_ := set $config "ca_file" (printf "/etc/octavius/ca/%s" .caKey) }}{{ end }}
{{- if .clientSecret }}
{{- $_ := set $config "client_cert" "/etc/octavius/client/tls.crt" }}
{{- $_ := set $config "client_key" "/etc/octavius/client/tls.key" }}
{{- end }}
{{- if .serverName }}{{ $_ := set $config "server_name" .serverName }}{{ end }}
{{- end }}
{{- $offered := list }}
{{- range $namespace := .Values.namespaces }}
{{- range $namespace.secrets }}{{ $offered = append $offered (printf "%s/%s" $namespace.name .) }}{{ end }}
{{- end }}
{{- with $offered }}{{ $_ := set $config "secrets" (dict "kubernetes" .) }}{{ end }}
{{- with $others }}{{ $_ := set $config "namespaces" . }}{{ end }}
{{- mergeOverwrite $config .Values.config | toPrettyJson }}
{{- end }}
