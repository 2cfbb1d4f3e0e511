"""Runs the test programs of a woven build once for each fault until one of them fails, and prints the score.

Only the test programs are needed, not the build: they may be carried to another machine. A file beside them remembers
which test noticed a fault, to ask it first the next time, and which programs passed without a fault.
"""
import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import weave

LEAST_SCORE = 0.97
# The programs whose tests are nearest to the files of a folder, in the order in which they run. Others follow.
NEAREST = [
    ("kernels/common/", ["kernels", "layers"]),
    ("kernels/optimizer/", ["kernels", "cuda", "trainers"]),
    ("kernels/", ["layers", "cuda", "kernels"]),
    ("layers/", ["layers", "trainers"]),
    ("core/runtime/", ["runtime", "cuda"]),
    ("core/distributed/", ["distributed", "trainers", "cli"]),
    ("core/", ["autograd", "tensor", "config", "io"]),
    ("trainers/", ["trainers", "cli"]),
    ("tools/", ["tools", "cli"]),
    ("cli/", ["cli"]),
]


LONG_SECONDS = 10.0  # after which a fault is likely to be noticed by no test
TESTS_OF_A_PART = 40  # that are measured together
SHORT_SECONDS = 1.0  # of a test; longer ones run when these have seen nothing
RUN_LIMIT_SECONDS = 600.0
MEMORY = pathlib.Path("/dev/shm")  # a file system on which tests of files need not wait for a disk


class Program:
    def __init__(self, path, gpu, devices):
        self.path, self.name, self.devices = path, path.name.removeprefix("test_"), devices
        self.log = path.with_suffix(".log")  # where something fails without a fault
        self.seconds = {}  # of each test that passes without a fault
        self.tests = []
        suite = ""
        listed = subprocess.run([path, "--gtest_list_tests"], capture_output=True, text=True, check=True, timeout=60)
        for line in listed.stdout.splitlines():
            line = line.split("#")[0].rstrip()
            if not line.startswith(" "):
                suite = line
            elif bool(re.search(r"Gpu[./]", suite)) == gpu:
                self.tests.append(suite + line.strip())

    def begin_measuring(self):
        self.seconds = {}
        self.log.unlink(missing_ok=True)

    def measure(self, tests):
        """Runs tests without a fault. Returns what ended the program, or None where some of them pass."""
        failed = self.run(tests, 0, RUN_LIMIT_SECONDS)
        return None if self.seconds.keys() & set(tests) else failed

    def parts(self):
        """All tests, some in each part."""
        count = -(-len(self.tests) // TESTS_OF_A_PART)
        return [self.tests[first::count] for first in range(count)]

    def leave_out_what_fails(self):
        """Without a fault, too: such a test notices nothing."""
        for test in [test for test in self.tests if test not in self.seconds]:
            print(f"left out, since it fails without a fault ({self.log}): {test} of {self.name}", flush=True)
            self.tests.remove(test)

    def run(self, tests, fault, limit):
        """The test that failed, or None where all passed. Without a fault also adds to `seconds`."""
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            report = pathlib.Path(folder, "report.json")
            environment = dict(os.environ, HEDDLE_FAULT=str(fault), GTEST_FAIL_FAST=str(int(fault != 0)),
                               GTEST_FILTER=":".join(tests), GTEST_OUTPUT=f"json:{report}", TMPDIR=folder,
                               TEST_TMPDIR=folder, OMP_WAIT_POLICY="passive", **next(self.devices))
            process = subprocess.Popen([self.path], env=environment, cwd=folder, text=True, errors="replace",
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            late = ""
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                late = " (time limit)"
            if fault == 0 and report.exists():
                self.seconds |= {f"{suite['name']}.{test['name']}": float(test["time"].rstrip("s"))
                                 for suite in json.loads(report.read_text())["testsuites"]
                                 for test in suite["testsuite"] if not test.get("failures")}
            if process.returncode == 0:
                return None
            if fault == 0:
                with self.log.open("a") as log:
                    log.write(output)
        started = re.findall(r"\[ RUN      \] (\S+)", output)
        failed = re.findall(r"\[  FAILED  \] ([^\s,]+[./][^\s,]+)", output)
        return (failed or started[-1:] or ["start of the program"])[0] + late

    def limit(self, tests):
        return 60.0 + 10.0 * sum(self.seconds.get(test, 0.0) for test in tests)


def words_of(path):
    """What tests of a file may have in their names: norm_backward_rows.h -> norm, backward."""
    common = {"cpu", "cuda", "kernels", "core", "rows", "row", "common", "data", "test"}
    return [word for word in pathlib.Path(path).stem.split("_") if word not in common]


def attempts(fault, programs, noticed):
    """Pairs of a program and some of its tests, which together are all tests, the likely and the short ones first."""
    order = next((names for prefix, names in NEAREST if fault.file.startswith(prefix)), [])
    last = noticed.get(fault.name)
    words = words_of(fault.file)
    groups = collections.defaultdict(list)
    for program in programs:
        place = order.index(program.name) if program.name in order else len(order)
        for test in program.tests:
            is_far, is_long = place == len(order), program.seconds.get(test, 0.0) > SHORT_SECONDS
            is_named = any(word in test.lower() for word in words)
            groups[last != [program.name, test], is_far, is_long, not is_named, place, program.name].append(test)
    by_name = {program.name: program for program in programs}
    return [(by_name[key[-1]], groups[key]) for key in sorted(groups)]


def notice(fault, programs, noticed, deadline):
    """Which program and test noticed the fault: None if none did. Where the time was over before, the seconds it took."""
    begin = time.monotonic()
    for program, tests in attempts(fault, programs, noticed):
        left = deadline - time.monotonic()
        if left <= 0:
            return time.monotonic() - begin
        test = program.run(tests, fault.number, min(program.limit(tests), left))
        if time.monotonic() >= deadline:
            return time.monotonic() - begin
        if test is not None:
            return program.name, test
    return None


def main():
    parser = argparse.ArgumentParser(prog="./dev mutate")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to plant, or beginnings of their names; all")
    parser.add_argument("--cuda", action="store_true", help="the faults in CUDA sources, with the tests on a GPU")
    parser.add_argument("--programs", type=pathlib.Path, help="folder of the test programs; without it the arguments alone "
                        "are looked at")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults tried side by side")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that take turns at the runs")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds

    faults = weave.read_faults("cuda" if arguments.cuda else "cpu")
    for name in arguments.names:
        if not any(fault.name.startswith(name) for fault in faults):
            parser.error(f"no name of a fault begins with '{name}'")
    if not arguments.seconds > 0:
        parser.error(f"--seconds is {arguments.seconds:g}, expected more than 0")
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}, expected at least 1")
    if arguments.gpus < 1:
        parser.error(f"--gpus is {arguments.gpus}, expected at least 1")
    if arguments.programs is None:
        return
    devices = itertools.cycle([{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in range(arguments.gpus)]
                              if arguments.gpus > 1 else [{}])
    if arguments.names:
        faults = [fault for fault in faults if fault.name.startswith(tuple(arguments.names))]
    programs = [Program(path, arguments.cuda, devices) for path in sorted(arguments.programs.resolve().glob("test_*"))
                if os.access(path, os.X_OK) and path.is_file() and path.name != "test_architecture"]
    programs = [program for program in programs if program.tests]
    if not programs or not faults:
        sys.exit("mutate: no such faults, or no test programs")
    file = arguments.programs / f"mutate_{'cuda' if arguments.cuda else 'cpu'}.json"
    memory = json.loads(file.read_text()) if file.exists() else {"noticed": {}, "passed": {}}
    noticed = memory["noticed"]

    def remember():
        file.write_text(json.dumps(memory, indent=0, sort_keys=True))

    stale = []
    for program in programs:
        version, program.seconds = memory["passed"].get(program.name, (0, {}))
        if version != program.path.stat().st_mtime:
            stale.append(program)
    for program in stale:
        program.begin_measuring()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        parts = [(program, tests) for program in stale for tests in program.parts()]
        for (program, _), failed in zip(parts, pool.map(lambda part: part[0].measure(part[1]), parts)):
            if failed is not None:
                sys.exit(f"mutate: {failed} ends {program.name} without a fault ({program.log})")
    for program in stale:
        memory["passed"][program.name] = (program.path.stat().st_mtime, program.seconds)
    remember()
    for program in programs:
        program.leave_out_what_fails()
        seconds = sum(program.seconds.values())
        print(f"without a fault: {program.name}, {len(program.tests)} tests, {seconds:.0f} s", flush=True)

    tried, unnoticed, under_way = 0, [], {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(notice, fault, programs, noticed, deadline): fault for fault in faults}
        for future in concurrent.futures.as_completed(futures):
            fault, result = futures[future], future.result()
            if isinstance(result, float):
                under_way[fault] = result
                continue
            tried += 1
            if result is None:
                unnoticed.append(fault)
                noticed.pop(fault.name, None)
            else:
                noticed[fault.name] = list(result)
            remember()
            said = "NOT NOTICED" if result is None else f"{result[0]}: {result[1]}"
            print(f"{tried:4}/{len(faults)} {fault.name}: {said}", flush=True)

    found = tried - len(unnoticed)
    score = found / max(1, tried)
    print(f"\n{found} of {tried} faults noticed, {100 * score:.1f} %; {len(faults) - tried} not tried to the end")
    for fault in sorted(unnoticed, key=lambda fault: fault.name):
        print(f"  {fault.name}: {fault.what} ({fault.file})")
    for fault, seconds in sorted(under_way.items(), key=lambda item: -item[1]):
        if seconds >= LONG_SECONDS:
            print(f"  not noticed in {seconds:.0f} s, when the time was over: {fault.name}: {fault.what} ({fault.file})")
    sys.exit(score < LEAST_SCORE)


if __name__ == "__main__":
    try:
        main()
    except weave.FaultError as error:
        sys.exit(f"mutate: {error}")
