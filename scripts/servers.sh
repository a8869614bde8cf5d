#!/bin/sh
# Installs servers, or a browser, from Debian's packages, for tests that start their
# own from the binaries. No service is started.
#
#   scripts/servers.sh PACKAGE...
#
# Needs root on a Debian or Ubuntu.
set -eu

say() { printf 'servers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v apt-get >/dev/null || die "apt-get is not on the PATH: install $* as your system has it"
[ "$(id -u)" = 0 ] || die "root is needed: sudo apt-get install $*"

# Two processes may want them at the same time (parallel test binaries).
exec 9>"${TMPDIR:-/tmp}/keylane-servers.lock"
flock 9
dpkg-query -W -f='${Status}\n' "$@" 2>/dev/null | grep -cx 'install ok installed' | grep -qx "$#" && exit 0

# Each package would start a service on the usual port, unless this forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 130' HUP INT PIPE TERM
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
say "installing $*"
apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
