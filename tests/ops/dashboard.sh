#!/usr/bin/env bash
# Tests the alerts with promtool, and checks that the dashboard's queries match a launcher's /metrics: a real Prometheus
# scrapes a launcher that trains.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ops/env.sh
home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
export PATH=$PWD/target/release:$PATH:$home/prometheus/usr/bin

promtool check rules ops/grafana/alerts.yaml >/dev/null
promtool test rules tests/ops/alerts_test.yaml >/dev/null
python3 -B tests/ops/dashboard.py
