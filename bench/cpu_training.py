#!/usr/bin/env python3
"""Training speed on the CPU, heddle in float32 and bfloat16 beside PyTorch in float32: the same model, batches, steps and
threads, one after the other.

    bench/cpu_training.py [--heddle PROGRAM] [--threads 2 16] [--dtype float32 bfloat16] [--steps N] [--rounds N]
                          [--compile] [--json FILE]

Prints a table with the ratios and one JSON row a measurement. The programs take turns for --rounds rounds and the best
round of each counts, so that a disturbance of the machine does not hit one side alone.
Python needs bench/peers/requirements.txt; heddle must have been built, and its text be there (./dev setup).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from config import load_config  # noqa: E402

WARMUP = 5  # steps that are not timed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heddle", type=Path, default=ROOT / "build/cpu/heddle")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/bench/train_toy_cpu.yaml")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="of heddle")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--json", type=Path, help="write the rows there instead of printing them")
    return parser.parse_args()


def run(command: list, threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cpu_training: {command[0]} failed:\n{done.stderr}")
    return done.stdout


def measure_heddle(arguments: argparse.Namespace, threads: int, dtype: str) -> dict:
    """The time of a long run less that of a short one, so that what comes before and after the steps does not count."""
    trainer = load_config(arguments.config)["trainer"]
    tokens = trainer["batch_size"] * trainer["sequence_length"] * trainer.get("accumulate", 1)
    seconds = {}
    for steps in (WARMUP, WARMUP + arguments.steps):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            run([arguments.heddle.resolve(), "train", arguments.config.resolve(), "--out", folder, "--device", "cpu",
                 "--resume", "none", "--set", f"trainer.steps={steps}", "--set", f"trainer.dtype={dtype}"], threads)
            seconds[steps] = time.perf_counter() - begin
    value = tokens * arguments.steps / (seconds[WARMUP + arguments.steps] - seconds[WARMUP])
    return {
        "suite": "training", "config": arguments.config.stem, "pass": "step", "quantity": "speed", "n": tokens,
        "dtype": dtype, "device": "cpu", "value": value, "unit": "tokens/s", "threads": threads,
        "steps": arguments.steps, "peer": "heddle",
    }


def measure_torch(arguments: argparse.Namespace, threads: int, *flags: str) -> dict:
    out = run([sys.executable, ROOT / "bench/peers/train_tnl.py", "--config", arguments.config.resolve(),
               "--threads", threads, "--steps", arguments.steps, "--warmup", WARMUP, *flags], threads)
    return json.loads(out.splitlines()[-1])


def measure(arguments: argparse.Namespace, threads: int) -> dict[str, dict]:
    sides = {f"heddle {dtype}": lambda dtype=dtype: measure_heddle(arguments, threads, dtype)
             for dtype in arguments.dtype}
    sides["eager"] = lambda: measure_torch(arguments, threads)
    if arguments.compile:
        sides["compile"] = lambda: measure_torch(arguments, threads, "--compile")
    best = {}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            row = side()
            if name not in best or row["value"] > best[name]["value"]:
                best[name] = row
    return best


def main() -> int:
    arguments = parse_arguments()
    results = {threads: measure(arguments, threads) for threads in arguments.threads}
    heddle = [f"heddle {dtype}" for dtype in arguments.dtype]
    print(f"{'threads':>7}  {'':<15} {'tokens/s':>10}" + "".join(f"  {name + ' is':>18}" for name in heddle))
    for threads, rows in results.items():
        for name, row in rows.items():
            ratios = "".join(f"  {rows[ours]['value'] / row['value']:>17.2f}x" for ours in heddle)
            print(f"{threads:>7}  {name:<15} {row['value']:>10.0f}{ratios}")
    lines = "".join(json.dumps(row) + "\n" for rows in results.values() for row in rows.values())
    if arguments.json:
        arguments.json.write_text(lines)
    else:
        print(lines, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
