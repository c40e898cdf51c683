#!/usr/bin/env bash
# Makes this machine able to run stsync: Debian packages that are missing, .venv, the project in it.
# usage: deploy/setup.sh [rabbitmq] [postgresql] [mariadb]     the servers wanted beside Python
# Nothing that is there already is upgraded or restarted; a second run finds it all and ends at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

APT_SECONDS=${APT_SECONDS:-900}
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# python3.11 or newer, whatever it is called, and rather one that can make virtual environments. The system's own comes first: the
# system keeps it secure, and it is built with optimizations, which one that was compiled by hand often is not.
find_python() {
    local name other=
    for name in {/usr/bin/,}python3{.11,.12,.13,.14,}; do
        name=$(command -v "$name") || continue
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if can_make_venv "$name"; then
            echo "$name"
            return
        fi
        other=${other:-$name}
    done
    [ -n "$other" ] && echo "$other"
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The package that brings a server, unless its program is there.
missing_packages() {
    local server python
    python=$(find_python) || echo python3
    { [ -n "$python" ] && can_make_venv "$python"; } || [ -x .venv/bin/python ] || venv_package "$python"
    command -v setpriv >/dev/null || echo util-linux
    for server in "$@"; do
        case $server in
            rabbitmq) [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || echo rabbitmq-server ;;
            mariadb) PATH=$PATH:/usr/sbin command -v mariadbd >/dev/null || echo mariadb-server ;;
            postgresql) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql ;;
        esac
    done
}

# Debian keeps venv apart for each version of its own Python.
venv_package() {
    local version
    version=$("${1:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=3
    if [ "$version" != 3 ] && apt-cache show "python$version-venv" >/dev/null 2>&1; then
        echo "python$version-venv"
    else
        echo python3-venv
    fi
}

# A package's service must not start on its default port. RUNLEVEL=1 tells invoke-rc.d so; systemd asks
# policy-rc.d: one that forbids stands there while apt runs, unless the system has one of its own.
POLICY=/usr/sbin/policy-rc.d
forbid_services() {
    [ ! -e $POLICY ] || return 0
    printf '#!/bin/sh\n# while stsync deploy/setup.sh runs apt\nexit 101\n' | "${root[@]}" tee $POLICY >/dev/null
    "${root[@]}" chmod 755 $POLICY
    trap '"${root[@]}" rm -f $POLICY' EXIT
}

root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
install_packages() {
    local log
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        fail "these packages are missing and neither root nor sudo is at hand: $*; have them installed, then run again"
    command -v apt-get >/dev/null || fail "these are missing and there is no apt-get: $*; install them, then run again"
    log=$(mktemp)
    say "installing with apt, without starting their services: $* (at most $APT_SECONDS s)"
    forbid_services
    if ! { "${root[@]}" timeout "$APT_SECONDS" apt-get update -qq &&
        "${root[@]}" timeout "$APT_SECONDS" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@"; } </dev/null >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "apt could not install $*; see above, put it right (network, another apt running), then run again"
    fi
    rm -f "$log"
}

fingerprint() { { .venv/bin/python -V && pwd && cat deploy/requirements.lock pyproject.toml; } 2>/dev/null | sha256sum; }

make_venv() {
    local python
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(find_python) || fail "no Python 3.11 or newer here; install python3.11 (or newer), then run again"
        say "making .venv with $python"
        "$python" -m venv --clear .venv
    fi
    [ "$(cat .venv/stsync-setup 2>/dev/null)" != "$(fingerprint)" ] || return 0
    say "installing what deploy/requirements.lock names into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r deploy/requirements.lock ||
        fail "pip could not install deploy/requirements.lock; see above, put it right, then run again"
    say "installing stsync into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . ||
        fail "pip could not install the project; see above"
    fingerprint >.venv/stsync-setup
}

for server in "$@"; do
    case $server in
        rabbitmq | postgresql | mariadb) ;;
        *) fail "unknown server '$server'; known are rabbitmq, postgresql, mariadb" ;;
    esac
done
mapfile -t packages < <(missing_packages "$@")
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
make_venv
