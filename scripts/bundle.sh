#!/usr/bin/env bash
# Makes dist/lineward-VERSION-bundle: everything that a machine without internet needs, as wheels with their hashes.
# There: sudo ./install.sh. The wheels are for the Python (PYTHON=) and the processor that this runs on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-/usr/bin/python3}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml")
out=${OUT:-$here/dist}/lineward-$version-bundle
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$out"
mkdir -p "$out/wheels" "$out/scripts" "$work/source"
"$python" -m venv "$work/pip"
pip=("$work/pip/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" download --quiet --only-binary :all: --require-hashes -r "$here/requirements.lock" --dest "$out/wheels"
cp -a "$here"/{daemon,drivers,models,src,pyproject.toml,README.md,LICENSE,NOTICE} "$work/source/"
rm -rf "$work"/source/src/*.egg-info
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$out/wheels" "$work/source"
cp -a "$here"/{systemd,docs,requirements.lock,LICENSE,NOTICE} "$out/"
cp -a "$here/scripts/install.sh" "$out/scripts/"
ln -s scripts/install.sh "$out/install.sh"
find "$out" -name __pycache__ -prune -exec rm -rf {} +
printf '%s\n' "$out"
