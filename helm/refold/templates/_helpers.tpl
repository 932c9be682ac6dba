{{- define "refold.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "refold.headless" -}}
{{ include "refold.fullname" . }}-workers
{{- end -}}

{{- define "refold.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "refold.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "refold.fleet" -}}
{{ default (printf "%s.%s" .Release.Namespace (include "refold.fullname" .)) .Values.fleet }}
{{- end -}}

{{- define "refold.selector" -}}
app.kubernetes.io/name: refold
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "refold.labels" -}}
{{ include "refold.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of something of ours: (dict "root" . "name" … "component" … "annotations" … "labels" …) */}}
{{- define "refold.metadata" -}}
name: {{ .name }}
namespace: {{ default .root.Release.Namespace .namespace }}
labels:
  {{- include "refold.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "refold.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* A value as TOML has it. Helm reads every number as a float. */}}
{{- define "refold.toml" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* Where snapshots are kept; empty where they are not. */}}
{{- define "refold.repository" -}}
{{- if .Values.snapshots.existingClaim -}}
file:///var/lib/refold-snapshots
{{- else -}}
{{ .Values.snapshots.repository }}
{{- end -}}
{{- end -}}

{{/* Where further variables are from. */}}
{{- define "refold.envFrom" -}}
{{- with .Values.snapshots.existingSecret }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- with .Values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The configuration file. */}}
{{- define "refold.config" -}}
{{- range $key, $value := .Values.settings }}
{{ $key }} = {{ include "refold.toml" $value }}
{{- end }}
{{- with include "refold.repository" . }}
snapshot_repository = {{ . | quote }}
snapshot_seconds = {{ include "refold.toml" $.Values.snapshots.seconds }}
snapshots_kept = {{ include "refold.toml" $.Values.snapshots.kept }}
{{- with $.Values.snapshots.config }}

[snapshot_repository_config]
{{- range $key, $value := . }}
{{ $key | quote }} = {{ include "refold.toml" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.kafka.settings }}

[kafka]
{{- range $key, $value := . }}
{{ $key | quote }} = {{ include "refold.toml" $value }}
{{- end }}
{{- end }}
{{- range $name, $settings := .Values.projections }}

[projections.{{ $name | quote }}]
{{- range $key, $value := $settings }}
{{ $key }} = {{ include "refold.toml" $value }}
{{- end }}
{{- end }}
{{ end -}}

{{- define "refold.scheme" -}}
{{ ternary "https" "http" (not (empty .Values.http.tlsSecret)) }}
{{- end -}}

{{/* What a worker and a command have in common: where Kafka is, and the configuration. */}}
{{- define "refold.env" -}}
- name: REFOLD_CONFIG
  value: /etc/refold/refold.toml
- name: REFOLD_BOOTSTRAP_SERVERS
  value: {{ .Values.kafka.bootstrapServers | quote }}
- name: REFOLD_NAMESPACE
  value: {{ include "refold.fleet" . | quote }}
- name: REFOLD_STATE_DIR
  value: /var/lib/refold
- name: TMPDIR
  value: /tmp
{{- with .Values.kafka.existingSecret }}
- name: REFOLD_KAFKA
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.kafka.existingSecretKey }}
{{- end }}
{{- end -}}

{{/* The environment of a worker. */}}
{{- define "refold.workerEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: REFOLD_WORKER_NAME
  value: $(POD_NAME)
{{- if and .Values.staticMembership (not .Values.autoscaling.enabled) }}
- name: REFOLD_STATIC_MEMBERSHIP
  value: "true"
{{- end }}
{{- if .Values.standbys }}
- name: REFOLD_STANDBYS
  value: {{ .Values.standbys | quote }}
{{- end }}
- name: REFOLD_HTTP_HOST
  value: 0.0.0.0
- name: REFOLD_HTTP_PORT
  value: {{ .Values.http.port | quote }}
- name: REFOLD_ADVERTISED_ADDRESS
  value: $(POD_NAME).{{ include "refold.headless" . }}.{{ .Release.Namespace }}.svc:{{ .Values.http.port }}
- name: REFOLD_DRAIN_SECONDS
  value: {{ .Values.shutdown.drainSeconds | quote }}
{{- if dig "limits" "memory" "" .Values.resources }}
- name: REFOLD_MEMORY_LIMIT_BYTES
  valueFrom:
    resourceFieldRef:
      containerName: worker
      resource: limits.memory
{{- end }}
{{- with .Values.http }}
{{- if .adminPort }}
- name: REFOLD_ADMIN_PORT
  value: {{ .adminPort | quote }}
{{- end }}
{{- if .tlsSecret }}
- name: REFOLD_TLS_CERTIFICATE
  value: /etc/refold/tls/tls.crt
- name: REFOLD_TLS_KEY
  value: /etc/refold/tls/tls.key
{{- if .tlsAuthority }}
- name: REFOLD_TLS_AUTHORITY
  value: /etc/refold/tls/ca.crt
{{- end }}
{{- end }}
{{- with .adminNames }}
- name: REFOLD_ADMIN_NAMES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .readCertificates }}
- name: REFOLD_READ_CERTIFICATES
  value: "true"
{{- end }}
{{- end }}
{{- with .Values.auth }}
{{- if and .existingSecret .adminKey }}
- name: REFOLD_ADMIN_TOKENS
  value: /etc/refold/tokens/{{ .adminKey }}
{{- end }}
{{- if and .existingSecret .readKey }}
- name: REFOLD_READ_TOKENS
  value: /etc/refold/tokens/{{ .readKey }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The names of the modules that a ConfigMap has. */}}
{{- define "refold.codeFiles" -}}
{{- if .Values.code.existingConfigMap -}}
{{ toJson .Values.code.existingConfigMapKeys }}
{{- else -}}
{{ toJson (keys .Values.code.files | sortAlpha) }}
{{- end -}}
{{- end -}}

{{- define "refold.mounts" -}}
# By their names: files that are mounted so stay as they were when the container was started.
- name: config
  mountPath: /etc/refold/refold.toml
  subPath: refold.toml
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- range (include "refold.codeFiles" . | fromJsonArray) }}
- name: code
  mountPath: /app/{{ . }}
  subPath: {{ . }}
  readOnly: true
{{- end }}
{{- if .Values.code.initContainer.image }}
- name: modules
  mountPath: /app
  readOnly: true
{{- end }}
{{- if .Values.kafka.tlsSecret }}
- name: kafka
  mountPath: /etc/refold/kafka
  readOnly: true
{{- end }}
{{- if .Values.snapshots.existingClaim }}
- name: snapshots
  mountPath: /var/lib/refold-snapshots
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "refold.volumes" -}}
- name: config
  configMap:
    name: {{ include "refold.fullname" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSizeLimit }}
{{- if (include "refold.codeFiles" . | fromJsonArray) }}
- name: code
  configMap:
    name: {{ default (printf "%s-code" (include "refold.fullname" .)) .Values.code.existingConfigMap }}
{{- end }}
{{- if .Values.code.initContainer.image }}
- name: modules
  emptyDir: {}
{{- end }}
{{- with .Values.kafka.tlsSecret }}
- name: kafka
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.snapshots.existingClaim }}
- name: snapshots
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "refold.initContainers" -}}
{{- with .Values.code.initContainer }}
{{- if .image }}
- name: code
  image: {{ .image }}
  imagePullPolicy: {{ .pullPolicy }}
  command: {{ toJson .command }}
  securityContext:
    {{- toYaml $.Values.securityContext | nindent 4 }}
  resources:
    {{- toYaml $.Values.resources | nindent 4 }}
  volumeMounts:
    - name: modules
      mountPath: /code
{{- end }}
{{- end }}
{{- with .Values.extraInitContainers }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What pods of workers and of commands have in common. */}}
{{- define "refold.pod" -}}
serviceAccountName: {{ include "refold.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What a change of makes pods be replaced. */}}
{{- define "refold.checksums" -}}
checksum/config: {{ include "refold.config" . | sha256sum }}
checksum/code: {{ toJson .Values.code | sha256sum }}
{{- $secrets := list .Values.kafka.existingSecret .Values.kafka.tlsSecret }}
{{- $found := list }}
{{- range $secrets }}
{{- if . }}
{{- $secret := lookup "v1" "Secret" $.Release.Namespace . }}
{{- $found = append $found (dict "name" . "data" (default dict $secret.data)) }}
{{- end }}
{{- end }}
checksum/secrets: {{ toJson $found | sha256sum }}
{{- end -}}

{{/* Refuse what cannot be. */}}
{{- define "refold.check" -}}
{{- if not .Values.kafka.bootstrapServers }}
{{- fail "kafka.bootstrapServers is needed: host:port of your brokers" }}
{{- end }}
{{- if not .Values.projections }}
{{- fail "projections is needed: name at least one, with its class and topic" }}
{{- end }}
{{- if and .Values.code.files .Values.code.existingConfigMap }}
{{- fail "code.files and code.existingConfigMap: give one of them" }}
{{- end }}
{{- if and .Values.code.existingConfigMap (not .Values.code.existingConfigMapKeys) }}
{{- fail "code.existingConfigMapKeys is needed: the names of the modules in that ConfigMap" }}
{{- end }}
{{- if and .Values.code.initContainer.image (or .Values.code.files .Values.code.existingConfigMap) }}
{{- fail "code.initContainer and a ConfigMap with code: give one of them" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (or (not .Values.autoscaling.prometheusAddress) (not .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling needs prometheusAddress, and maxReplicas: the partitions of the topic that has most of them" }}
{{- end }}
{{- if and .Values.snapshots.repository .Values.snapshots.existingClaim }}
{{- fail "snapshots.repository and snapshots.existingClaim: give one of them" }}
{{- end }}
{{- if and .Values.snapshots.config (not .Values.snapshots.repository) }}
{{- fail "snapshots.config needs snapshots.repository" }}
{{- end }}
{{- if and .Values.http.readCertificates (not .Values.http.tlsSecret) }}
{{- fail "http.readCertificates needs http.tlsSecret" }}
{{- end }}
{{- if and .Values.http.adminNames (not .Values.http.tlsSecret) }}
{{- fail "http.adminNames needs http.tlsSecret" }}
{{- end }}
{{- if eq (int .Values.http.adminPort) (int .Values.http.port) }}
{{- fail "http.adminPort is http.port: leave it 0 for one port" }}
{{- end }}
{{- range $name, $settings := .Values.projections }}
{{- if not $settings.class }}
{{- fail (printf "projections.%s.class is needed: a shipped one, or module:Class" $name) }}
{{- end }}
{{- end }}
{{- end -}}
