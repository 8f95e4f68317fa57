{{/* Values that contradict each other: all of them are told at once, with what to change. */}}
{{- define "podlight.check" -}}
{{- $faults := list -}}
{{- $v := .Values -}}
{{- if and (eq $v.injection.mode "policy") (semverCompare "<1.36.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $faults = append $faults (printf "injection.mode=policy needs Kubernetes 1.36 (MutatingAdmissionPolicy), and this is %s: set injection.mode=webhook" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $v.activator.hostNetwork (ne $v.activator.kind "DaemonSet") -}}
{{- $faults = append $faults "activator.hostNetwork needs activator.kind=DaemonSet: two replicas on a node would want the same ports" -}}
{{- end -}}
{{- $ports := dict -}}
{{- range $name, $port := $v.activator.ports -}}
{{- $port = toString $port -}}
{{- if hasKey $ports $port -}}
{{- $faults = append $faults (printf "activator.ports.%s and activator.ports.%s are both %s: give each its own" (get $ports $port) $name $port) -}}
{{- end -}}
{{- $_ := set $ports $port $name -}}
{{- end -}}
{{- if eq (int $v.webhook.port) (int $v.webhook.adminPort) -}}
{{- $faults = append $faults "webhook.port and webhook.adminPort are the same: give each its own" -}}
{{- end -}}
{{- if and $v.requests.tls.enabled (not $v.requests.enabled) -}}
{{- $faults = append $faults "requests.tls.enabled needs requests.enabled=true" -}}
{{- end -}}
{{- if and $v.requests.tls.enabled (not $v.requests.tls.secrets) -}}
{{- $faults = append $faults "requests.tls.enabled needs at least one Secret in requests.tls.secrets" -}}
{{- end -}}
{{- if and $v.requests.tls.secrets (not $v.requests.tls.enabled) -}}
{{- $faults = append $faults "requests.tls.secrets has no use without requests.tls.enabled=true" -}}
{{- end -}}
{{- if and $v.requests.scale.clusterWide $v.requests.scale.namespaces -}}
{{- $faults = append $faults "requests.scale.clusterWide already covers requests.scale.namespaces: empty the list, or set clusterWide=false" -}}
{{- end -}}
{{- if and (ne $v.requests.service.type "LoadBalancer") (or $v.requests.service.loadBalancerClass $v.requests.service.loadBalancerSourceRanges) -}}
{{- $faults = append $faults "requests.service.loadBalancerClass and loadBalancerSourceRanges need requests.service.type=LoadBalancer" -}}
{{- end -}}
{{- if and (eq $v.requests.service.type "ClusterIP") (eq $v.requests.service.externalTrafficPolicy "Local") -}}
{{- $faults = append $faults "requests.service.externalTrafficPolicy=Local needs requests.service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and (or $v.xdp.interfaces $v.xdp.probes) (not $v.xdp.enabled) -}}
{{- $faults = append $faults "xdp.interfaces and xdp.probes have no use without xdp.enabled=true" -}}
{{- end -}}
{{- if and $v.xdp.probes (not $v.xdp.interfaces) -}}
{{- $faults = append $faults "xdp.probes needs an interface in xdp.interfaces: only the XDP program answers them" -}}
{{- end -}}
{{- if and (has $v.xdp.mode (list "native" "generic")) (not $v.xdp.interfaces) -}}
{{- $faults = append $faults (printf "xdp.mode=%s needs an interface in xdp.interfaces" $v.xdp.mode) -}}
{{- end -}}
{{- $existing := $v.certificates.existing -}}
{{- if eq $v.certificates.mode "existing" -}}
{{- if not $existing.activatorSecret -}}
{{- $faults = append $faults "certificates.mode=existing needs certificates.existing.activatorSecret" -}}
{{- end -}}
{{- if and (include "podlight.webhook.runs" .) (not $existing.webhookSecret) -}}
{{- $faults = append $faults "certificates.mode=existing needs certificates.existing.webhookSecret: or set injection.mode to policy or off, and certificates.handOut=false" -}}
{{- end -}}
{{- if and (eq $v.injection.mode "webhook") (not $existing.caBundle) (not $v.injection.webhookAnnotations) -}}
{{- $faults = append $faults "certificates.mode=existing with injection.mode=webhook needs certificates.existing.caBundle, or injection.webhookAnnotations for whoever fills it in" -}}
{{- end -}}
{{- else if or $existing.activatorSecret $existing.webhookSecret $existing.caBundle -}}
{{- $faults = append $faults (printf "certificates.existing has no use with certificates.mode=%s: set mode=existing, or empty it" $v.certificates.mode) -}}
{{- end -}}
{{- if and (ne $v.certificates.mode "cert-manager") $v.certificates.certManager.issuerRef -}}
{{- $faults = append $faults "certificates.certManager.issuerRef needs certificates.mode=cert-manager" -}}
{{- end -}}
{{- if and $v.metrics.podMonitor.enabled $v.metrics.serviceMonitor.enabled -}}
{{- $faults = append $faults "metrics.podMonitor and metrics.serviceMonitor would scrape every pod twice: enable one" -}}
{{- end -}}
{{- if and (or $v.metrics.podMonitor.enabled $v.metrics.serviceMonitor.enabled) $v.networkPolicy.enabled (not $v.networkPolicy.metrics) -}}
{{- $faults = append $faults "the NetworkPolicy would keep Prometheus out: name it in networkPolicy.metrics, or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- range $component := list "activator" "webhook" -}}
{{- $values := get $v $component -}}
{{- $budget := $values.podDisruptionBudget -}}
{{- if and (ne (toString $budget.minAvailable) "") (ne (toString $budget.maxUnavailable) "") -}}
{{- $faults = append $faults (printf "%s.podDisruptionBudget: minAvailable and maxUnavailable exclude each other" $component) -}}
{{- end -}}
{{- if and $budget.enabled (ne (get $values "kind") "DaemonSet") (regexMatch "^[0-9]+$" (toString $budget.minAvailable)) (ge (int $budget.minAvailable) (int $values.replicas)) -}}
{{- $faults = append $faults (printf "%s.podDisruptionBudget.minAvailable=%v with %s.replicas=%v would block every drain of a node: it has to be less" $component $budget.minAvailable $component $values.replicas) -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\nThese values cannot be used:\n  - %s\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}
