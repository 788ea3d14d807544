#!/bin/sh
# Install Debian packages where that is possible (root, apt-get) and they are missing; otherwise say what is done without them.
# usage: system-packages.sh COMMAND=PACKAGE ...
set -u
missing=""
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null 2>&1 || missing="$missing ${pair#*=}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing"
    # Failure is no disaster: the firmware then goes through ziglang and unicorn from PyPI, and every receipt names the toolchain.
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >/dev/null ||
        echo "could not install:$missing; going on without"
else
    echo "not installed:$missing (sudo apt-get install --no-install-recommends$missing); going on without"
fi
