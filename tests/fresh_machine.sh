#!/usr/bin/env bash
# Whether the two commands of README.md do what they say on a machine that has nothing yet.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/fresh_machine.sh SUITE [argument of `heddle train`...]

Makes a bare root of a Debian or Ubuntu suite (bookworm, trixie, noble, ...: a script of debootstrap), puts what git has
committed there and runs both commands of README.md in it, as root and without a terminal:

  ./dev train configs/toy_kjv.yaml [argument...]    e.g. --set trainer.steps=20 for a short training
  ./dev test

Nothing but ./dev installs packages there. The root is removed at the end, however that comes. Must be run as root, and
needs debootstrap, about 3 GB below $TMPDIR (/tmp) and, until packages and data are there, the network.

Environment: MIRROR, from which packages are taken (default: deb.debian.org, or archive.ubuntu.com for a suite of
Ubuntu); http_proxy, https_proxy and HEDDLE_CMAKE_ARGUMENTS (see ./dev help) are handed on.
Exit codes: 0 both commands succeeded · 1 one did not · 2 wrong usage, or the root could not be made
TEXT
}

say() { printf 'fresh_machine: %s\n' "$*" >&2; }
refuse() { say "$@"; exit 2; }

# Runs in mount and process namespaces of its own: nothing that is mounted or started here outlives it.
make_root_and_run() {
  local root=$1 suite=$2
  shift 2
  local components=main mirror=${MIRROR-http://deb.debian.org/debian}
  if [[ $(readlink -f "/usr/share/debootstrap/scripts/$suite") == */gutsy ]]; then
    components=main,universe mirror=${MIRROR-http://archive.ubuntu.com/ubuntu}
  fi
  say "making a root of $suite from $mirror"
  debootstrap --variant=minbase --components="$components" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; say "debootstrap failed"; return 2; }
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mkdir "$root/heddle"
  git -c safe.directory='*' archive HEAD | tar -x -C "$root/heddle"
  run_there "$root" ./dev train configs/toy_kjv.yaml "$@" && run_there "$root" ./dev test
}

# run_there ROOT COMMAND...: in the folder /heddle of the root, with the environment of a fresh login.
run_there() {
  local root=$1 environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  local name
  shift
  for name in http_proxy https_proxy HEDDLE_CMAKE_ARGUMENTS; do
    [[ -z ${!name-} ]] || environment+=("$name=${!name}")
  done
  say "$*"
  # shellcheck disable=SC2016  # $@ is that of the inner shell
  env -i "${environment[@]}" setsid --wait chroot "$root" bash -c 'cd /heddle && exec "$@"' bash "$@" </dev/null ||
    { say "failed with exit code $?: $*"; return 1; }
}

if [[ ${1-} == --inside ]]; then
  shift
  make_root_and_run "$@"
  exit
fi

(($# > 0)) || { usage >&2; exit 2; }
case $1 in -h | --help | help) usage; exit ;; esac
suite=$1
((EUID == 0)) || refuse "must be run as root: it makes a root of its own and changes into it"
command -v debootstrap >/dev/null || refuse "no debootstrap here; as root run: apt-get install debootstrap"
[[ $suite =~ ^[a-z0-9.-]+$ && -e /usr/share/debootstrap/scripts/$suite ]] ||
  refuse "debootstrap knows no suite '$suite'; those it knows are in /usr/share/debootstrap/scripts"
unshare --mount --pid --fork true 2>/dev/null || refuse "this root may not mount (a container without privileges?)"

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
git -c safe.directory='*' diff --quiet HEAD || say "changes that are not committed are left out"
work=$(mktemp -d "${TMPDIR:-/tmp}/heddle-$suite.XXXXXX")
child=
clean_up() {
  [[ -z $child ]] || { kill -KILL "$child" && wait "$child"; } 2>/dev/null || true
  rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/root"
# In the background, so that a signal is not kept waiting.
unshare --mount --pid --fork --kill-child "$PWD/tests/fresh_machine.sh" --inside "$work/root" "$@" &
child=$!
code=0
wait "$child" || code=$?
child=
((code != 2)) || { say "$suite: no root could be made"; exit 2; }
((code == 0)) || { say "$suite: FAILED"; exit 1; }
say "$suite: both commands succeeded"
