#!/bin/sh
# Makes a RabbitMQ image from Debian's packages, for machines that reach no
# image registry. The result behaves like the official image in what keylane
# needs: same ports, same environment variables for the first user, management
# and streams enabled, log on the console.
#
#   scripts/broker-image.sh [4.3|4.0|3.10] [TAG]
#
# Needs Docker's engine and root on a Debian. Takes about a minute. TAG defaults to rabbitmq:VERSION-management.
set -eu

version=${1:-4.3}
tag=${2:-rabbitmq:$version-management}
# keylane shows the lines that start so as they come.
say() { printf 'broker-image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The Debian suite that carries the wanted version.
case $version in
  4.3)  suite=forky ;;
  4.0)  suite=trixie ;;
  3.10) suite=bookworm ;;   # too old for keylane; used to test that it says so
  *) die "no Debian suite is known for RabbitMQ $version (known: 4.3, 4.0, 3.10)" ;;
esac

command -v docker >/dev/null || die "docker is not on the PATH: install Docker's engine"
command -v apt-get >/dev/null || die "apt-get is not on the PATH: pull $tag from a registry, or pass --amqp-url of a running broker"
[ "$(. /etc/os-release && echo "$ID")" = debian ] || die "this is not a Debian, whose mirror would have the packages: pull $tag from a registry, or pass --amqp-url of a running broker"
[ "$(id -u)" = 0 ] || die "root is needed to unpack Debian packages: do this once as root"

# Two processes may want the image at the same time (parallel test binaries).
exec 9>"${TMPDIR:-/tmp}/keylane-broker-image.lock"
flock 9
if docker image inspect "$tag" >/dev/null 2>&1; then exit 0; fi

if ! command -v debootstrap >/dev/null; then
  say "installing debootstrap"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq debootstrap >/dev/null
fi

# The mirror is the one that this machine's apt uses for its main archive.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
    grep -v security | head -n 1
}
mirror=$(mirror)
# apt names its sources only once it has read their lists.
[ -n "$mirror" ] || { apt-get update -qq >/dev/null; mirror=$(mirror); }
[ -n "$mirror" ] || die "apt has no package source: run 'apt-get update' and look at /etc/apt/sources.list"

# An older debootstrap has no script of a newer suite's name; sid's fits all.
script=/usr/share/debootstrap/scripts/sid
root=$(mktemp -d "${TMPDIR:-/tmp}/keylane-broker-image.XXXXXX")
# An interrupted debootstrap leaves its mounts behind; never remove what is in them.
trap 'umount "$root/proc" "$root/sys" 2>/dev/null || :; rm -rf --one-file-system "$root" "$root.log"' EXIT
trap 'exit 130' HUP INT PIPE TERM

say "making $tag from Debian $suite (about a minute)"
debootstrap --variant=minbase --include=rabbitmq-server,ca-certificates \
  "$suite" "$root" "$mirror" "$script" >"$root.log" 2>&1 9>&- ||
  { tail -n 20 "$root.log" >&2; die "debootstrap failed, see above"; }

rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale \
  "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb \
  "$root"/var/lib/rabbitmq/.erlang.cookie
mkdir -p "$root"/etc/rabbitmq/conf.d
echo '[rabbitmq_management,rabbitmq_prometheus,rabbitmq_stream].' >"$root"/etc/rabbitmq/enabled_plugins
cat >"$root"/usr/local/bin/docker-entrypoint.sh <<'ENTRYPOINT'
#!/bin/sh
set -e
if [ "$1" = rabbitmq-server ] && [ "$(id -u)" = 0 ]; then
  {
    echo "loopback_users = none"
    echo "log.console = true"
    echo "default_user = ${RABBITMQ_DEFAULT_USER:-guest}"
    echo "default_pass = ${RABBITMQ_DEFAULT_PASS:-guest}"
    echo "default_vhost = ${RABBITMQ_DEFAULT_VHOST:-/}"
  } >/etc/rabbitmq/conf.d/10-defaults.conf
  unset RABBITMQ_DEFAULT_USER RABBITMQ_DEFAULT_PASS RABBITMQ_DEFAULT_VHOST
  cookie=/var/lib/rabbitmq/.erlang.cookie
  [ -s "$cookie" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$cookie"
  chmod 400 "$cookie"
  chown -R rabbitmq:rabbitmq /var/lib/rabbitmq /var/log/rabbitmq /etc/rabbitmq
  # Not Debian's wrapper: as process 1 it would ignore SIGTERM, and `docker stop`
  # would be a crash.
  shift
  exec setpriv --reuid rabbitmq --regid rabbitmq --init-groups \
    /usr/lib/rabbitmq/bin/rabbitmq-server "$@"
fi
exec "$@"
ENTRYPOINT
chmod 755 "$root"/usr/local/bin/docker-entrypoint.sh

tar -C "$root" -c . | docker import \
  -c 'ENTRYPOINT ["/usr/local/bin/docker-entrypoint.sh"]' \
  -c 'CMD ["rabbitmq-server"]' \
  -c 'ENV LANG=C.UTF-8 HOME=/var/lib/rabbitmq' \
  -c 'EXPOSE 5672 5671 15672 15692' \
  - "$tag" >/dev/null
say "made $tag"
