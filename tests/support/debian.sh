#!/bin/sh
# Makes sure that the programs named are there; each is a Debian package of its own name: debian.sh chromium ...
set -eu

missing=
for program; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
    echo "the tests need$missing on the PATH: install with apt-get install$missing, as root" >&2
    exit 1
fi

echo "fetching$missing from Debian"
# shellcheck disable=SC2086  # several words
if ! log=$($as_root apt-get update -q 2>&1 && $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends $missing 2>&1); then
    printf '%s\n' "$log" | tail -n 5 >&2
    echo "apt-get could not install$missing: see its lines above, then run make setup-tests again" >&2
    exit 1
fi
