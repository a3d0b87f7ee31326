#!/usr/bin/env bash
# Installs Lineward on this machine, from a source tree or from a bundle (a folder with wheels/):
#   sudo scripts/install.sh            program in /opt/lineward, config in /etc/lineward, data in /var/lib/lineward
#   sudo scripts/install.sh uninstall  keeps config and data; PURGE=1 removes them too
# Again over an older version: an upgrade. DESTDIR=FOLDER lays the files out there and touches nothing else (packages).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)  # a bundle has a link to this file
dest=${DESTDIR:-}
python=${PYTHON:-/usr/bin/python3}
opt=$dest/opt/lineward
units=$dest/usr/lib/systemd/system
services=(lineward.service 'lineward@.service' lineward-review.service 'lineward-review@.service' 'lineward-train@.service' lineward-train.slice)

say() { printf 'lineward: %s\n' "$*"; }
fail() { say "$*" >&2; exit 2; }

look_first() {
    if [ -z "$dest" ]; then
        [ "$(id -u)" -eq 0 ] || fail "this changes the system; run it with sudo"
        if dpkg-query --show --showformat='${db:Status-Abbrev}' lineward 2>/dev/null | grep -q '^ii'; then
            fail "the Debian package lineward is installed; use apt for it, or remove it first: apt remove lineward"
        fi
    fi
    [ -x "$(command -v "$python")" ] || fail "$python: not found; install python3, or name one with PYTHON=/path/to/python3"
    "$python" - <<'PY' || fail "$python: Lineward needs Python 3.11, 3.12 or 3.13; name one with PYTHON=/path/to/python3"
import sys
sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PY
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python: cannot make virtual environments; apt install python3-venv"
    if [ -z "$dest" ] && case $(readlink -f "$(command -v "$python")") in /home/* | /root/*) true ;; *) false ;; esac; then
        fail "$python lies in somebody's home, which the service may not read; use a Python outside of /home and /root"
    fi
}

# A wheel made from a copy, so that the tree stays as it is.
make_wheel() {
    local copy=$1/source
    mkdir -p "$copy"
    cp -a "$here"/{daemon,drivers,models,src,pyproject.toml,README.md,LICENSE,NOTICE} "$copy"/
    rm -rf "$copy"/src/*.egg-info
    find "$copy" -name __pycache__ -prune -exec rm -rf {} +
    "$1/pip/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$1/wheel" "$copy"
}

# The whole environment is made beside the old one and exchanged at the end: a failure leaves what was there.
lay_out_program() {
    new=$opt.new
    work=$(mktemp -d)
    trap 'rm -rf "$work" "$new"' EXIT
    mkdir -p "$(dirname "$opt")"
    rm -rf "$new"
    "$python" -m venv "$work/pip"
    if [ -n "$dest" ] && cmp -s "$here/requirements.lock" "$opt/share/lineward/requirements.lock"; then
        cp -al "$opt" "$new"  # laid out before for a package: only our own part is new
        rm -rf "$new"/lib/python3.*/site-packages/lineward{,-*.dist-info}
    else
        "$python" -m venv --without-pip "$new"
    fi
    local pip=("$work/pip/bin/python" -m pip --python "$new/bin/python" --disable-pip-version-check)
    if [ -d "$here/wheels" ]; then
        say "installing from $here/wheels"
        PIP_CONFIG_FILE=/dev/null "${pip[@]}" install --quiet --no-compile --no-index --find-links "$here/wheels" \
            --require-hashes -r "$here/requirements.lock"
        PIP_CONFIG_FILE=/dev/null "${pip[@]}" install --quiet --no-compile --no-index --no-deps "$here"/wheels/lineward-*.whl
    else
        make_wheel "$work"
        "${pip[@]}" install --quiet --no-compile --require-hashes -r "$here/requirements.lock"
        "${pip[@]}" install --quiet --no-compile --no-index --no-deps "$work"/wheel/lineward-*.whl
    fi
    rm -f "$new"/bin/{activate*,Activate.ps1}
    # Scripts name the interpreter by its path: it is /opt/lineward in the end.
    grep -lIr -- "$new" "$new/bin" | xargs -r sed -i "s|$new|/opt/lineward|g"
    sed -i "s|$new|/opt/lineward|g" "$new/pyvenv.cfg"
    "$new/bin/python" -m compileall -q -j 0 -s "$new" -p /opt/lineward "$new/lib" || true  # templates are no programs
    install -D -m 644 "$here/systemd/lineward.toml" "$new/share/lineward/lineward.toml"
    install -m 644 "$here/requirements.lock" "$new/share/lineward/requirements.lock"
    rm -rf "$new/share/doc/lineward"
    mkdir -p "$new/share/doc/lineward"
    cp -r "$here"/docs/{index.md,how-to,reference,explanation,tutorial,decisions,plc,images} "$new/share/doc/lineward/"
    cp -r "$here/systemd/mosquitto" "$new/share/lineward/"
    install -m 644 "$here"/{LICENSE,NOTICE} "$new/share/doc/lineward/"
    chmod -R u=rwX,go=rX "$new"
    rm -rf "$opt.old"
    [ ! -e "$opt" ] || mv "$opt" "$opt.old"
    mv "$new" "$opt"
    rm -rf "$opt.old"
}

lay_out_rest() {
    mkdir -p "$dest/usr/bin"
    ln -sfn /opt/lineward/bin/lineward "$dest/usr/bin/lineward"
    for unit in "${services[@]}"; do install -D -m 644 "$here/systemd/$unit" "$units/$unit"; done
    install -D -m 644 "$here/systemd/lineward.sysusers" "$dest/usr/lib/sysusers.d/lineward.conf"
    install -D -m 644 "$here/systemd/lineward.tmpfiles" "$dest/usr/lib/tmpfiles.d/lineward.conf"
    install -D -m 644 "$here/systemd/lineward-cameras.rules" "$dest/usr/lib/udev/rules.d/70-lineward-cameras.rules"
}

has_systemd() { [ -d /run/systemd/system ]; }

# The rule names a group that is new, and a USB camera may be plugged in already.
hand_over_cameras() {
    ! command -v udevadm >/dev/null || { udevadm control --reload && udevadm trigger --subsystem-match=usb; } 2>/dev/null || true
}

# A folder with everything in it; what is a disk of its own stays, empty.
empty_out() {
    [ -d "$1" ] || return 0
    find "$1" -depth \( -type d -exec rmdir {} \; -o -delete \) 2>/dev/null || true
}

# The same as debian/postinst does.
settle() {
    systemd-sysusers lineward.conf
    systemd-tmpfiles --create lineward.conf
    hand_over_cameras
    if [ ! -e /etc/lineward/lineward.toml ]; then
        install -m 640 -g lineward /opt/lineward/share/lineward/lineward.toml /etc/lineward/lineward.toml
    fi
    if has_systemd; then
        systemctl daemon-reload
        for unit in $(systemctl list-units --plain --no-legend --state=active,activating 'lineward.service' 'lineward@*.service' \
            'lineward-review.service' 'lineward-review@*.service' | cut -d' ' -f1); do
            say "restarting $unit"
            systemctl restart --no-block "$unit"
        done
    fi
}

uninstall() {
    [ "$(id -u)" -eq 0 ] || fail "this changes the system; run it with sudo"
    if has_systemd; then
        systemctl stop 'lineward.service' 'lineward@*.service' 'lineward-review.service' 'lineward-review@*.service' 'lineward-train@*.service' 2>/dev/null || true
        systemctl disable --quiet lineward.service lineward-review.service 2>/dev/null || true
        find /etc/systemd/system \( -name 'lineward@*.service' -o -name 'lineward-review@*.service' \) -type l -delete 2>/dev/null || true
    fi
    rm -rf /opt/lineward /opt/lineward.old /var/cache/lineward /var/cache/lineward-review /var/cache/lineward-train
    rm -f /usr/bin/lineward /usr/lib/sysusers.d/lineward.conf /usr/lib/tmpfiles.d/lineward.conf \
        /usr/lib/udev/rules.d/70-lineward-cameras.rules
    for unit in "${services[@]}"; do rm -f "$units/$unit"; done
    ! has_systemd || systemctl daemon-reload
    if [ "${PURGE:-0}" = 1 ]; then
        rm -rf /etc/lineward
        empty_out /var/lib/lineward
        if getent passwd lineward >/dev/null; then userdel lineward; fi
        say "removed, with its configuration and data"
    else
        say "removed; /etc/lineward and /var/lib/lineward are kept (PURGE=1 removes them)"
    fi
}

case ${1:-install} in
install)
    look_first
    lay_out_program
    lay_out_rest
    if [ -z "$dest" ]; then
        settle
        say "$(/opt/lineward/bin/lineward --version) is installed; now edit /etc/lineward/lineward.toml, then:"
        say "  lineward check; systemctl enable --now lineward"
    fi
    ;;
uninstall) uninstall ;;
*) fail "usage: $0 [install|uninstall]" ;;
esac
