{{/* Names and labels. */}}

{{- define "podlight.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What pods are selected by: never changes in a release. Takes (list $ component). */}}
{{- define "podlight.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ default $.Chart.Name $.Values.nameOverride }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object. Takes (list $ component). */}}
{{- define "podlight.labels" -}}
{{- $ := index . 0 -}}
{{ include "podlight.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "podlight.activator.account" -}}
{{- $account := .Values.activator.serviceAccount -}}
{{- if $account.name }}{{ $account.name }}{{ else if $account.create }}{{ include "podlight.fullname" . }}-activator{{ else }}default{{ end -}}
{{- end -}}

{{- define "podlight.webhook.account" -}}
{{- $account := .Values.webhook.serviceAccount -}}
{{- if $account.name }}{{ $account.name }}{{ else if $account.create }}{{ include "podlight.fullname" . }}-webhook{{ else }}default{{ end -}}
{{- end -}}

{{/* An image by tag, or by digest. Takes (list $ image). */}}
{{- define "podlight.image" -}}
{{- $ := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ default $.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{/* Secrets with certificates. */}}
{{- define "podlight.activator.secret" -}}
{{- if eq .Values.certificates.mode "existing" }}{{ .Values.certificates.existing.activatorSecret }}{{ else }}{{ include "podlight.fullname" . }}-activator-tls{{ end -}}
{{- end -}}

{{- define "podlight.webhook.secret" -}}
{{- if eq .Values.certificates.mode "existing" }}{{ .Values.certificates.existing.webhookSecret }}{{ else }}{{ include "podlight.fullname" . }}-webhook-tls{{ end -}}
{{- end -}}

{{/* What clients call the activator, as a JSON list: its Services, and each replica through the headless one. */}}
{{- define "podlight.activator.names" -}}
{{- $services := printf "%s-activator" (include "podlight.fullname" .) -}}
{{- $namespace := .Release.Namespace -}}
{{- $names := list (printf "%s.%s.svc" $services $namespace) (printf "%s-events.%s.svc" $services $namespace) (printf "*.%s-events.%s.svc" $services $namespace) -}}
{{- concat $names .Values.certificates.extraNames | toJson -}}
{{- end -}}

{{/* The sidecars' way to the activator; empty for the one that they take by themselves. */}}
{{- define "podlight.activator.service" -}}
{{- $name := printf "%s-activator-events" (include "podlight.fullname" .) -}}
{{- $port := int .Values.activator.ports.events -}}
{{- if not (and (eq $name "podlight-activator-events") (eq $port 8443)) -}}
https://{{ $name }}.{{ .Release.Namespace }}.svc:{{ $port }}
{{- end -}}
{{- end -}}

{{/* Whether the webhook's process runs: for reviews, for certificates, or to hand out the CA. */}}
{{- define "podlight.webhook.runs" -}}
{{- if or (eq .Values.injection.mode "webhook") (eq .Values.certificates.mode "own") .Values.certificates.handOut }}true{{ end -}}
{{- end -}}

{{/* Namespaces that are never injected, as a JSON list. */}}
{{- define "podlight.excluded" -}}
{{- concat (list "kube-system" .Release.Namespace) .Values.injection.excludedNamespaces | uniq | toJson -}}
{{- end -}}
