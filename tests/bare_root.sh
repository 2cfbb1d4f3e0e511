# Functions of scripts that try something on a bare Debian or Ubuntu system. To be sourced; the variable `script` is the
# name of the script. The script calls itself, as `SCRIPT --inside ROOT SUITE ARGUMENT...`, in namespaces of its own.
# shellcheck shell=bash

say() { printf '%s: %s\n' "$script" "$*" >&2; }
refuse() { say "$@"; exit 2; }

# Ends with exit code 2 where no root of this suite can be made.
check_root() {
  local suite=$1
  ((EUID == 0)) || refuse "must be run as root: it makes a root of its own and changes into it"
  command -v debootstrap >/dev/null || refuse "no debootstrap here; as root run: apt-get install debootstrap"
  [[ $suite =~ ^[a-z0-9.-]+$ && -e /usr/share/debootstrap/scripts/$suite ]] ||
    refuse "debootstrap knows no suite '$suite'; those it knows are in /usr/share/debootstrap/scripts"
  unshare --mount --pid --fork true 2>/dev/null || refuse "this root may not mount (a container without privileges?)"
}

# make_root ROOT SUITE: fills the folder ROOT with a minimal system of SUITE, from $MIRROR.
make_root() {
  local root=$1 suite=$2
  local components=main mirror=${MIRROR-http://deb.debian.org/debian}
  if [[ $(readlink -f "/usr/share/debootstrap/scripts/$suite") == */gutsy ]]; then
    components=main,universe mirror=${MIRROR-http://archive.ubuntu.com/ubuntu}
  fi
  say "making a root of $suite from $mirror"
  debootstrap --variant=minbase --components="$components" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; say "debootstrap failed"; return 2; }
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
}

# run_there ROOT FOLDER COMMAND...: in that folder of the root, with the environment of a fresh login.
run_there() {
  local root=$1 folder=$2 environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  local name
  shift 2
  for name in http_proxy https_proxy HEDDLE_CMAKE_ARGUMENTS; do
    [[ -z ${!name-} ]] || environment+=("$name=${!name}")
  done
  say "$*"
  # shellcheck disable=SC2016  # $@ is that of the inner shell
  env -i "${environment[@]}" setsid --wait chroot "$root" bash -c 'cd "$0" && exec "$@"' "$folder" "$@" </dev/null ||
    { say "failed with exit code $?: $*"; return 1; }
}

# inside_root SUITE ARGUMENT...: runs `SCRIPT --inside ROOT SUITE ARGUMENT...` in mount and process namespaces of its own:
# nothing that is mounted or started there outlives it. ROOT is an empty folder that is removed at the end, however that
# comes. Returns what the script returned.
inside_root() {
  local suite=$1 code=0
  work=$(mktemp -d "${TMPDIR:-/tmp}/heddle-$suite.XXXXXX")
  child=
  # shellcheck disable=SC2317  # called by the trap
  clean_up() {
    [[ -z $child ]] || { kill -KILL "$child" && wait "$child"; } 2>/dev/null || true
    rm -rf --one-file-system "$work"
  }
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  mkdir "$work/root"
  # In the background, so that a signal is not kept waiting.
  unshare --mount --pid --fork --kill-child "$PWD/tests/$script.sh" --inside "$work/root" "$@" &
  child=$!
  wait "$child" || code=$?
  child=
  return "$code"
}
