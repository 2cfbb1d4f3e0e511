#!/usr/bin/env bash
# usage: tests/interrupt.sh [INTERRUPTS [KILLS]]
#
# Interrupts trainings at random moments (SIGINT, SIGTERM, SIGHUP; 500 by default) and kills others (SIGKILL; 1000 by
# default), lets each go on, and compares what they end with, byte for byte, with a run that nobody disturbed. The same
# tests run in `./dev test` with 20 of each. Needs ./dev build cpu.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
export HEDDLE_INTERRUPTS=${1:-500} HEDDLE_KILLS=${2:-1000}
exec build/cpu/tests/test_cli --gtest_filter='SignalsTest.InterruptedAtRandomMoments:KillsTest.SurvivesKillsAtRandomMoments'
