{{/* What the pods of the activator and of the webhook have in common. */}}

{{/* Where pods run, and who they are. Takes (list $ component values account). */}}
{{- define "podlight.pod" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ index . 3 }}
enableServiceLinks: false
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
{{- $constraint := . }}
{{- if not (hasKey . "labelSelector") }}
{{- $constraint = merge (dict "labelSelector" (dict "matchLabels" (include "podlight.selector" (list $ $component) | fromYaml))) . }}
{{- end }}
{{- list $constraint | toYaml | nindent 0 }}
{{- end }}
{{- end }}
{{- if $values.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- end -}}

{{/* Probes at the admin port. Takes the component's values. */}}
{{- define "podlight.probes" -}}
livenessProbe:
  httpGet:
    path: /healthz
    port: admin
  {{- toYaml .livenessProbe | nindent 2 }}
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  {{- toYaml .readinessProbe | nindent 2 }}
{{- end -}}

{{/* Takes (list $ component values). */}}
{{- define "podlight.podDisruptionBudget" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $budget := (index . 2).podDisruptionBudget -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "podlight.fullname" $ }}-{{ $component }}
  namespace: {{ $.Release.Namespace }}
  labels:
    {{- include "podlight.labels" (list $ $component) | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "podlight.selector" (list $ $component) | nindent 6 }}
  {{- if ne (toString $budget.minAvailable) "" }}
  minAvailable: {{ $budget.minAvailable }}
  {{- else if ne (toString $budget.maxUnavailable) "" }}
  maxUnavailable: {{ $budget.maxUnavailable }}
  {{- else }}
  maxUnavailable: 1
  {{- end }}
  unhealthyPodEvictionPolicy: {{ $budget.unhealthyPodEvictionPolicy }}
{{- end -}}
