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

script=fresh_machine
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
source tests/bare_root.sh

make_root_and_run() {
  local root=$1 suite=$2
  shift 2
  make_root "$root" "$suite" || return
  mkdir "$root/heddle"
  git -c safe.directory='*' archive HEAD | tar -x -C "$root/heddle"
  run_there "$root" /heddle ./dev train configs/toy_kjv.yaml "$@" && run_there "$root" /heddle ./dev test
}

if [[ ${1-} == --inside ]]; then
  shift
  make_root_and_run "$@"
  exit
fi

(($# > 0)) || { usage >&2; exit 2; }
case $1 in -h | --help | help) usage; exit ;; esac
suite=$1
check_root "$suite"
git -c safe.directory='*' diff --quiet HEAD || say "changes that are not committed are left out"
code=0
inside_root "$@" || code=$?
((code != 2)) || refuse "$suite: no root could be made"
((code == 0)) || { say "$suite: FAILED"; exit 1; }
say "$suite: both commands succeeded"
