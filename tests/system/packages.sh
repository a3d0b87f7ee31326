#!/usr/bin/env bash
# Installs what the tests need from Debian when run as root, else names the command.
set -eu
need=()
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || need+=(mosquitto)
command -v mosquitto_sub >/dev/null || need+=(mosquitto-clients)
[ ${#need[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # policy-rc.d would be needed to keep the packaged broker from starting where an init runs; the tests start their own.
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
else
    echo "tests against a real broker will be skipped; install it with: sudo apt-get install ${need[*]}" >&2
fi
