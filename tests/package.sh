#!/usr/bin/env bash
# Whether the packages of `./dev package` do what README.md says of them.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/package.sh [SUITE]

Takes the two packages in build/package.

tar.gz   unpacked into a temporary folder and moved there: the program runs from another one, finds its configs, trains,
         exports, and a CMake project finds the libraries (where cmake and what they are compiled with is installed)
.deb     installed by apt into a bare root of SUITE (default: that of this machine; a script of debootstrap), with nothing
         but what apt takes as its dependencies: the same commands, completion in bash, and removal

The second part must be run as root, and needs debootstrap, about 500 MB below $TMPDIR (/tmp) and the network.
Environment: MIRROR, from which packages are taken (default: deb.debian.org, or archive.ubuntu.com for a suite of
Ubuntu); http_proxy and https_proxy are handed on.
Exit codes: 0 both work · 1 one does not · 2 wrong usage, or there are no packages, or no root could be made
TEXT
}

script=package
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
source tests/bare_root.sh

# The commands that are tried, in an empty folder; $1 is the program.
try_program() {
  cat <<TEXT
set -eu
$1 --version
$1 info | grep -q '^operators'
$1 train configs/toy_copy.yaml --set trainer.steps=20 --threads 1 --out run
$1 eval run --threads 1
$1 bench srms_norm --config plain --n 8 --quantity memory
$1 export run --out exported
test -s exported/modeling_heddle.py
TEXT
}

# A program of a user who has the libraries in the folder $1.
try_libraries() {
  local folder=$1 project=$2
  mkdir -p "$project"
  sed -n '/^## In C++/,/^```$/ { /^```cpp/,/^```$/ { /^```/d; p } }' README.md >"$project/main.cc"
  cat >"$project/CMakeLists.txt" <<'TEXT'
cmake_minimum_required(VERSION 3.25)
project(user LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(heddle REQUIRED)
add_executable(user main.cc)
target_link_libraries(user PRIVATE heddle::ops)
TEXT
  cmake -S "$project" -B "$project/build" "-Dheddle_ROOT=$folder" >"$project/log" 2>&1 &&
    cmake --build "$project/build" >>"$project/log" 2>&1 || { tail -n 20 "$project/log" >&2; return 1; }
  [[ $("$project/build/user") == 'loss = [4], d_w = [-4, -8, -12]' ]]
}

try_archive() {
  local archive=$1 folder=$2
  mkdir -p "$folder/unpacked" "$folder/empty"
  tar -xzf "$archive" -C "$folder/unpacked" --strip-components=1
  mv "$folder/unpacked" "$folder/moved here"
  (cd "$folder/empty" && bash -c "$(try_program "'$folder/moved here/bin/heddle'")") || return 1
  command -v cmake >/dev/null || { say "no cmake here: the libraries are not tried"; return 0; }
  try_libraries "$folder/moved here" "$folder/project"
}

# In the root: no files of the repository, and nothing that a bare system has not.
try_package_there() {
  local root=$1 suite=$2 package=$3
  make_root "$root" "$suite" || return
  cp "$package" "$root/root/heddle.deb"
  run_there "$root" / apt-get update -qq || return 2
  run_there "$root" / env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends /root/heddle.deb &&
    mkdir "$root/root/empty" &&
    run_there "$root" /root/empty bash -c "$(try_program heddle)" &&
    run_there "$root" /root/empty bash -c '. /usr/share/bash-completion/completions/heddle
      COMP_WORDS=(heddle train configs/toy_c) COMP_CWORD=2 && _heddle && [[ ${COMPREPLY[*]} == configs/toy_copy.yaml ]]' &&
    run_there "$root" / test -s /usr/share/doc/heddle/copyright -a -s /usr/share/doc/heddle/README.md &&
    run_there "$root" / apt-get remove -qq -y heddle &&
    run_there "$root" / bash -c '! command -v heddle && ! test -e /usr/share/heddle'
}

if [[ ${1-} == --inside ]]; then
  shift
  try_package_there "$@"
  exit
fi

case ${1-} in -h | --help | help) usage; exit ;; esac
(($# <= 1)) || { usage >&2; exit 2; }
# shellcheck disable=SC1091  # it is there on every system with apt
suite=${1-$(. /etc/os-release && echo "${VERSION_CODENAME-}")}
shopt -s nullglob
packages=(build/package/*.deb) archives=(build/package/*.tar.gz)
((${#packages[@]} == 1 && ${#archives[@]} == 1)) ||
  refuse "expected one .deb and one .tar.gz in build/package, found ${#packages[@]} and ${#archives[@]}; run ./dev package"

folder=$(mktemp -d "${TMPDIR:-/tmp}/heddle-package.XXXXXX")
trap 'rm -rf "$folder"' EXIT
try_archive "$PWD/${archives[0]}" "$folder" || { say "${archives[0]}: FAILED"; exit 1; }
say "${archives[0]}: works"
rm -rf "$folder"

check_root "$suite"
code=0
inside_root "$suite" "$PWD/${packages[0]}" || code=$?
((code != 2)) || refuse "$suite: no root could be made"
((code == 0)) || { say "${packages[0]} on $suite: FAILED"; exit 1; }
say "${packages[0]} on $suite: works"
