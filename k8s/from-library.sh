#!/usr/bin/env bash
# Prepares an installation of the library's Python worker for
# `kubectl apply -f k8s/outbox-worker.yaml`. It starts and stops nothing; it may run again.
#
#   bash k8s/from-library.sh [NAMESPACE]
#
# 1. What the worker's Deployment has in its own environment, BROKER_TYPE above all, goes into
#    ConfigMap outbox-worker-config, and addresses with passwords into the two secrets: our
#    Deployment has no environment of its own, so the apply would drop them. What a secret has
#    already is not overwritten.
# 2. What is live of Deployment, Service, autoscaler, disruption budget and ServiceAccount is noted
#    as what was applied last, without the number of replicas: then the apply replaces what was
#    there, however it was installed. Without the note, as after a server-side apply or Helm, it
#    would put our container next to the old one in each pod.
#
# Exit code 1: something is left that a person has to decide; each such line begins with "DECIDE".
set -euo pipefail
namespace=${1:-sagaz}
config=outbox-worker-config
left=0

kc() { kubectl -n "$namespace" "$@"; }
decide() {
  echo "DECIDE: $*"
  left=1
}
# lines TEMPLATE prints what a Go template makes of the Deployment.
lines() { kc get deployment outbox-worker -o go-template="$1"; }

if [[ -z $(kc get deployment outbox-worker --ignore-not-found -o name) ]]; then
  echo "no Deployment outbox-worker in namespace $namespace: there is nothing to prepare"
  exit 0
fi

# secret_of NAME prints which key of which secret our Deployment mounts as that setting; nothing for
# what is no secret.
secret_of() {
  case $1 in
  DATABASE_URL) echo sagaz-db-credentials connection-string ;;
  KAFKA_BOOTSTRAP_SERVERS) echo sagaz-broker-credentials bootstrap-servers ;;
  RABBITMQ_URL) echo sagaz-broker-credentials rabbitmq-url ;;
  KAFKA_SASL_USERNAME) echo sagaz-broker-credentials sasl-username ;;
  KAFKA_SASL_PASSWORD) echo sagaz-broker-credentials sasl-password ;;
  BROKER_URL) # the fallback of both addresses
    case $broker in
    kafka) secret_of KAFKA_BOOTSTRAP_SERVERS ;;
    rabbitmq) secret_of RABBITMQ_URL ;;
    esac
    ;;
  esac
}

# is_setting NAME: a setting without a secret that the relay takes over. METRICS_PORT is not among
# them: our probes and Service name 8000.
is_setting() {
  case $1 in
  BROKER_TYPE | KAFKA_CLIENT_ID | KAFKA_SECURITY_PROTOCOL | KAFKA_SASL_MECHANISM | RABBITMQ_EXCHANGE | RABBITMQ_EXCHANGE_TYPE | \
    BATCH_SIZE | POLL_INTERVAL | MAX_RETRIES | WORKER_BATCH_SIZE | WORKER_POLL_INTERVAL_SECONDS | MAX_RETRY_ATTEMPTS | \
    INITIAL_RETRY_DELAY_SECONDS | MAX_RETRY_DELAY_SECONDS | STUCK_CLAIM_TIMEOUT_SECONDS | LOG_LEVEL | OTEL_*) ;;
  *) return 1 ;;
  esac
}

# setting NAME VALUE writes a setting into the ConfigMap.
setting() {
  kc get configmap "$config" -o name >/dev/null 2>&1 || kc create configmap "$config" >/dev/null
  local before
  before=$(kc get configmap "$config" -o go-template="{{index .data \"$1\"}}" 2>/dev/null || true)
  [[ $before != "$2" ]] || return 0
  printf '{"data":{"%s":"%s"}}' "$1" "$(quoted "$2")" | kc patch configmap "$config" --patch-file=/dev/stdin >/dev/null
  echo "ConfigMap $config: $1=$2"
}
quoted() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g'; }

# secret NAME BASE64 puts a value into the secret where our Deployment looks for it, without showing
# it.
secret() {
  local into key before
  read -r into key <<<"$(secret_of "$1")"
  if [[ -z $into ]]; then
    decide "$1 is one broker's address, and BROKER_TYPE is ${broker:-not known}: put it into secret sagaz-broker-credentials, key bootstrap-servers or rabbitmq-url"
    return
  fi
  kc get secret "$into" -o name >/dev/null 2>&1 || kc create secret generic "$into" >/dev/null
  before=$(kc get secret "$into" -o go-template="{{with .data}}{{with index . \"$key\"}}{{.}}{{end}}{{end}}")
  if [[ $before == "$2" ]]; then
    return 0
  elif [[ -n $before ]]; then
    decide "the worker's $1 is not what secret $into has as $key: change that key if the worker's is right"
  else
    printf '{"data":{"%s":"%s"}}' "$key" "$2" | kc patch secret "$into" --patch-file=/dev/stdin >/dev/null
    echo "secret $into: $key, from the worker's $1"
  fi
}

# take NAME VALUE carries over a variable of the Deployment.
take() {
  if [[ -n $(secret_of "$1") || $1 == BROKER_URL ]]; then
    secret "$1" "$(printf '%s' "$2" | base64 | tr -d '\n')"
  elif is_setting "$1"; then
    setting "$1" "$2"
  fi
}

env='{{range .spec.template.spec.containers}}{{range .env}}'
end='{{"\n"}}{{end}}{{end}}{{end}}'
values=$(lines "$env{{if .value}}{{.name}} {{.value}}$end")
from_configmaps=$(lines "$env{{with .valueFrom}}{{with .configMapKeyRef}}X {{.name}} {{.key}}{{end}}{{end}}{{if .valueFrom}} {{.name}}$end" | grep '^X ' || true)
from_secrets=$(lines "$env{{with .valueFrom}}{{with .secretKeyRef}}X {{.name}} {{.key}}{{end}}{{end}}{{if .valueFrom}} {{.name}}$end" | grep '^X ' || true)
whole=$(lines '{{range .spec.template.spec.containers}}{{range .envFrom}}{{with .configMapRef}}configmap/{{.name}}{{end}}{{with .secretRef}}secret/{{.name}}{{end}}{{"\n"}}{{end}}{{end}}')

while read -r _ name key variable; do
  [[ -z $name ]] || values+=$'\n'"$variable $(kc get configmap "$name" -o go-template="{{index .data \"$key\"}}")"
done <<<"$from_configmaps"

# The broker first: where BROKER_URL goes depends on it.
broker=$(awk '$1 == "BROKER_TYPE" { print $2 }' <<<"$values")
[[ -n $broker ]] || broker=$(kc get configmap "$config" -o go-template='{{with .data}}{{with .BROKER_TYPE}}{{.}}{{end}}{{end}}' 2>/dev/null || true)

while read -r variable value; do
  [[ -z $variable ]] || take "$variable" "$value"
done <<<"$values"

while read -r _ name key variable; do
  [[ -n $name ]] || continue
  read -r into into_key <<<"$(secret_of "$variable")"
  if [[ $name == "$into" && $key == "$into_key" ]]; then
    continue # ours reads the same
  fi
  value=$(kc get secret "$name" -o go-template="{{with .data}}{{with index . \"$key\"}}{{.}}{{end}}{{end}}")
  if [[ -n $into || $variable == BROKER_URL ]]; then
    secret "$variable" "$value"
  elif is_setting "$variable"; then
    setting "$variable" "$(printf '%s' "$value" | base64 -d)"
    [[ $variable != BROKER_TYPE ]] || broker=$(printf '%s' "$value" | base64 -d)
  fi
done <<<"$from_secrets"

while read -r source; do
  case $source in
  "" | "configmap/$config") ;;
  *) decide "the worker takes all of $source as its environment: copy what it needs of that into ConfigMap $config" ;;
  esac
done <<<"$whole"

if [[ -z $broker ]]; then
  decide "neither the worker's Deployment nor ConfigMap $config has BROKER_TYPE: kubectl -n $namespace patch configmap $config --patch '{\"data\":{\"BROKER_TYPE\":\"kafka\"}}', or rabbitmq"
fi

for object in deployment/outbox-worker service/outbox-worker-metrics hpa/outbox-worker-hpa pdb/outbox-worker-pdb serviceaccount/outbox-worker; do
  [[ -n $(kc get "$object" --ignore-not-found -o name) ]] || continue
  # Not what the cluster and the autoscaler write: an apply takes away what is noted and is not in
  # its file, the number of replicas for one.
  without='"metadata":{"annotations":{"deployment.kubernetes.io/revision":null},"resourceVersion":null,"uid":null,"generation":null,"creationTimestamp":null},"status":null'
  case $object in
  deployment/*) without+=',"spec":{"replicas":null}' ;;
  service/*) without+=',"spec":{"clusterIP":null,"clusterIPs":null}' ;;
  esac
  live=$(kc get "$object" -o json | kubectl patch --local -f - --type=merge --patch "{$without}" -o json)
  kubectl apply set-last-applied --create-annotation -f - <<<"$live" >/dev/null
  echo "$object: what is live is noted as what was applied last"
done
exit $left
