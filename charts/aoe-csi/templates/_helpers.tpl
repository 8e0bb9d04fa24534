{{/* Objects have fixed names: a CSI driver is installed once in a cluster. */}}

{{/* Labels that select a component's pods. A selector cannot change, so it has nothing of the release. */}}
{{- define "aoe-csi.selector" -}}
app.kubernetes.io/name: aoe-csi
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Takes: root, component. */}}
{{- define "aoe-csi.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include "aoe-csi.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: aoe-csi
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "aoe-csi.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end }}

{{- /* Whether there are guests' disks at all: of libvirt's domains, or of KubeVirt's machines. */}}
{{- define "aoe-csi.guestDisks" -}}
{{- if or .Values.guests.enabled .Values.kubevirt.guestDisks }}yes{{ end }}
{{- end }}
{{- define "aoe-csi.guestsImage" -}}
{{ printf "%s:%s" .Values.guests.image.repository (.Values.guests.image.tag | default .Chart.AppVersion) | quote }}
{{- end }}

{{- define "aoe-csi.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of pods that need nothing of their host. The socket in /csi admits its own user alone, so all containers are one. */}}
{{- define "aoe-csi.restrictedPod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "aoe-csi.restrictedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Of the containers that work on their host; the image's own user is nobody. */}}
{{- define "aoe-csi.hostContainer" -}}
securityContext:
  privileged: true
  runAsUser: 0
  runAsGroup: 0
{{- end }}

{{/* What both host DaemonSets have of their host, at the paths it has there. */}}
{{- define "aoe-csi.hostMounts" -}}
- name: dev
  mountPath: /dev
  mountPropagation: HostToContainer
- name: sys
  mountPath: /sys
  mountPropagation: HostToContainer
- name: run
  mountPath: /run
  mountPropagation: HostToContainer
{{- range $name, $path := fromYaml (include "aoe-csi.hostDirectories" .) }}
- name: {{ $name }}
  mountPath: {{ $path }}
{{- end }}
{{- end }}

{{- define "aoe-csi.hostVolumes" -}}
{{- range list "dev" "sys" "run" }}
- name: {{ . }}
  hostPath:
    path: /{{ . }}
    type: Directory
{{- end }}
{{- range $name, $path := fromYaml (include "aoe-csi.hostDirectories" .) }}
- name: {{ $name }}
  hostPath:
    path: {{ $path }}
    type: DirectoryOrCreate
{{- end }}
{{- end }}

{{/* Where the host's units, rules and settings of ours are, and our state. */}}
{{- define "aoe-csi.hostDirectories" -}}
etc-aoe-csi: /etc/aoe-csi
etc-lvm: /etc/lvm
etc-modprobe: /etc/modprobe.d
etc-systemd: /etc/systemd/system
etc-udev: /etc/udev/rules.d
programs: /usr/local/lib/aoe-csi
state: /var/lib/aoe-csi
{{- end }}

{{/* A sidecar of the controller. Takes: root, name, port, workers (the whole argument), arguments. */}}
{{- define "aoe-csi.sidecar" -}}
{{- $common := .root.Values.sidecars }}
{{- $own := get $common .name -}}
- name: csi-{{ .name }}
  image: {{ printf "%s:%s" $own.image.repository $own.image.tag | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
  - --csi-address=/csi/csi.sock
  - --leader-election
  - --timeout={{ $common.timeoutSeconds }}s
  - --retry-interval-start={{ $common.retryStartSeconds | default 1 }}s
  - --retry-interval-max={{ $common.retryMaxSeconds | default 60 }}s
  - {{ .workers }}={{ $own.workers }}
  - --kube-api-qps={{ $common.kubeApiQps }}
  - --kube-api-burst={{ $common.kubeApiBurst }}
  - --http-endpoint=:{{ .port }}
  {{- range .arguments }}
  - {{ . }}
  {{- end }}
  - --v={{ $common.verbosity }}
  env:
  - name: NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  ports:
  - name: {{ .name }}
    containerPort: {{ .port }}
  # It answers once the driver does. On a node that is busy starting, all who were killed for being late would start once
  # more, and keep it busy.
  startupProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    periodSeconds: 5
    timeoutSeconds: 10
    failureThreshold: 120
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    periodSeconds: 20
    timeoutSeconds: 10
  resources: {{- toYaml $common.resources | nindent 4 }}
  {{- include "aoe-csi.restrictedContainer" .root | nindent 2 }}
  volumeMounts:
  - name: socket
    mountPath: /csi
{{- end }}

{{/*
How long a process of ours may be silent before it is taken for stuck: so many times 20 s. On a node that has too much to
do, one that is ended begins all its work anew.
*/}}
{{- define "aoe-csi.livenessPace" -}}
periodSeconds: 20
timeoutSeconds: 10
failureThreshold: {{ . }}
{{- end }}

{{/* Name of the role's service account as the API server says it. */}}
{{- define "aoe-csi.storageUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:aoe-csi-storage
{{- end }}
