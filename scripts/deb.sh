#!/usr/bin/env bash
# Makes dist/lineward_VERSION_ARCH.deb: a virtual environment below /opt/lineward on Debian's own python3, units, user.
#   PYTHON=/usr/bin/python3   the interpreter it is made for, which has to be Debian's
#   DEB_VERSION=...           another version than that of pyproject.toml
#   DEB_STAGE=FOLDER          where the files are laid out; kept, and quick the next time
#   DEB_PACK_ONLY=1           pack what is laid out there as it is
#   DEB_COMPRESSION=zstd      or none
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-/usr/bin/python3}
version=${DEB_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml")}
arch=$(dpkg --print-architecture)
out=${OUT:-$here/dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=${DEB_STAGE:-$work/stage}
case $(readlink -f "$python") in /usr/bin/*) ;; *)
    printf 'lineward: %s is not Debian'\''s python3, which the package depends on; give PYTHON=/usr/bin/python3\n' "$python" >&2
    exit 2 ;;
esac
[ -n "${DEB_PACK_ONLY:-}" ] || DESTDIR=$stage PYTHON=$python bash "$here/scripts/install.sh"
minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
rm -rf "$stage/DEBIAN"
mkdir -p "$stage/DEBIAN" "$out"
chmod 755 "$stage" "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<CONTROL
Package: lineward
Version: $version
Architecture: $arch
Maintainer: The Lineward authors <lineward@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$stage" | cut -f1)
Depends: python3 (>= $minor), python3 (<< $next), systemd (>= 250), util-linux
Recommends: mosquitto, python3-gi, gir1.2-aravis-0.8
Section: science
Priority: optional
Description: visual inspection beside a production line
 Watches a line through an industrial camera and answers for every part pass,
 fail or review over MQTT. Comes with everything it needs in /opt/lineward;
 configuration in /etc/lineward, data in /var/lib/lineward.
CONTROL
for script in postinst prerm postrm; do
    install -m 755 "$here/systemd/debian/$script" "$stage/DEBIAN/$script"
done
dpkg-deb --root-owner-group "-Z${DEB_COMPRESSION:-zstd}" --build "$stage" "$out/lineward_${version}_${arch}.deb" >/dev/null
printf '%s\n' "$out/lineward_${version}_${arch}.deb"
