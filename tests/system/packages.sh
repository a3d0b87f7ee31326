#!/usr/bin/env bash
# Installs what the tests need from Debian when run as root, else names the command.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
need=()
command -v mosquitto >/dev/null || need+=(mosquitto)
command -v mosquitto_sub >/dev/null || need+=(mosquitto-clients)
command -v ip >/dev/null || need+=(iproute2)
command -v chromium >/dev/null || need+=(chromium)
# A GigE Vision camera in software and the library to read it: the driver `aravis` is optional, its tests need both.
command -v arv-fake-gv-camera-0.8 >/dev/null || need+=(aravis-tools)
[ -e /usr/lib/python3/dist-packages/gi/__init__.py ] || need+=(python3-gi)
compgen -G "/usr/lib/*/girepository-1.0/Aravis-0.8.typelib" >/dev/null || need+=(gir1.2-aravis-0.8)
[ ${#need[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${need[@]}"; } >"$log" 2>&1; then
        cat "$log" >&2
        echo "Debian packages could not be installed; tests that need them will be skipped: ${need[*]}" >&2
    fi
    rm -f "$log"
else
    echo "some tests will be skipped; install what they need with: sudo apt-get install ${need[*]}" >&2
fi
