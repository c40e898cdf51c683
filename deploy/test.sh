#!/usr/bin/env bash
# Runs everything that must hold: style, types, import rules, all tests on real servers.
# usage: deploy/test.sh                 all of it
#        deploy/test.sh PYTEST-ARG…     the tests alone, e.g. deploy/test.sh -k capture
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deploy/setup.sh rabbitmq postgresql mariadb || exit 1
PATH=$PWD/.venv/bin:$PATH
[ $# -eq 0 ] || exec python -m pytest "$@"

failed=()
step() {
    local title=$1
    shift
    printf '\n== %s\n' "$title"
    "$@" || failed+=("$title")
}
step "ruff check" ruff check .
step "ruff format" ruff format --check .
step "mypy --strict" mypy --strict
step "lint-imports" lint-imports
step "pytest" python -m pytest -n 2 --dist worksteal # two at a time, each with servers of its own

echo
if [ ${#failed[@]} -eq 0 ]; then
    echo "test.sh: all five hold: ruff check, ruff format, mypy --strict, lint-imports, pytest"
else
    printf 'test.sh: failed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
