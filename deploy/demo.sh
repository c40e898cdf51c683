#!/usr/bin/env bash
# A cluster of three nodes on this machine: changes on the primary, the time until each secondary shows them, the proof.
# usage: deploy/demo.sh [--database sqlite|mariadb|postgresql] [--keep] [--broker-url URL]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

servers=(rabbitmq)
previous=
for word in "$@"; do
    case $previous$word in
        --broker-url*) servers=("${servers[@]/rabbitmq/}") ;;
        --database=mariadb | --databasemariadb) servers+=(mariadb) ;;
        --database=postgresql | --databasepostgresql) servers+=(postgresql) ;;
    esac
    previous=
    [ "$word" != --database ] || previous=$word
done
wanted=()
for server in "${servers[@]}"; do [ -z "$server" ] || wanted+=("$server"); done
deploy/setup.sh "${wanted[@]}"
exec .venv/bin/python -m deploy.demo "$@"
