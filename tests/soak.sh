#!/usr/bin/env bash
# usage: tests/soak.sh [SECONDS]
#
# Trains on the CPU for SECONDS (3600 by default) while SIGKILL comes at random moments, every 20 s on average, lets the
# training go on each time, and compares all files that it ends with, weights and metrics among them, byte for byte, with
# those of a training that nobody disturbed. The same test runs in `./dev test` for 20 s. Needs ./dev build cpu.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
export HEDDLE_SOAK=${1:-3600}
exec build/cpu/tests/test_cli --gtest_filter=KillsTest.SoaksInKills
