#!/usr/bin/env python3
"""Trains the same model from the same weights on the same data with heddle and with PyTorch and compares the losses and
gradient norms of every step: forward, backward, clipping, AdamW, all of it at once.

    check_training.py [--heddle PROGRAM] [--config FILE] [--steps N] [--device cpu|cuda]

The text is so short that heddle has a single window to train on, so both see the same batches. The first weights come
from a checkpoint of a run whose learning rate is too small to change them.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from config import load_config
from training import TrainingStep

ROOT = Path(__file__).resolve().parents[2]
# Relative. AdamW divides gradients by their size, so a rounding error of a small one becomes a step of full length: the
# runs drift apart from the second step on.
FIRST_TOLERANCE = 1e-5
TOLERANCE = 1e-3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heddle", type=Path, default=ROOT / "build/cpu/heddle")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/bench/train_toy_cpu.yaml")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="of heddle; PyTorch runs on the CPU")
    return parser.parse_args()


def run_heddle(arguments: argparse.Namespace, out: Path, text: Path, *settings: str) -> None:
    sets = [f"data.path={text}", "data.validation_fraction=0.5", "schedule={type: constant, warmup_steps: 0}",
            "trainer.batch_size=4", *settings]
    command = [arguments.heddle, "train", arguments.config, "--out", out, "--device", arguments.device,
               "--resume", "none"]
    for value in sets:
        command += ["--set", value]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_training: heddle failed:\n{done.stderr}")


def train_heddle(arguments: argparse.Namespace, folder: Path, window: np.ndarray) -> tuple[dict, list[tuple]]:
    """The weights before the first step, and (loss, gradient norm) of each step from there."""
    text = folder / "text"
    text.write_bytes(window.tobytes() * 2)  # the second half is for validation
    run_heddle(arguments, folder / "start", text, "trainer.steps=1", "optimizer.lr=1.0e-30")
    weights = load_file(folder / "start/checkpoints/step_1/model.safetensors")
    run_heddle(arguments, folder / "run", text, f"trainer.steps={arguments.steps}")
    with open(folder / "run/metrics.csv") as file:
        rows = [(float(row["loss"]), float(row["gradient_norm"])) for row in csv.DictReader(file)]
    return weights, rows


def train_torch(arguments: argparse.Namespace, weights: dict, window: np.ndarray) -> list[tuple]:
    step = TrainingStep(load_config(arguments.config), "chunked")
    step.model.load_state_dict(weights)
    batch = torch.from_numpy(window.astype(np.int64)).expand(4, -1)
    return [step([(batch[:, :-1], batch[:, 1:])]) for _ in range(arguments.steps)]


def main() -> int:
    arguments = parse_arguments()
    length = load_config(arguments.config)["trainer"]["sequence_length"]
    window = np.random.default_rng(1).integers(97, 123, length + 1, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights, found = train_heddle(arguments, Path(folder), window)
    expected = train_torch(arguments, weights, window)
    print(f"{'step':>4} {'loss':>12} {'PyTorch':>12} {'norm':>12} {'PyTorch':>12}")
    right = True
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True), 1):
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
        right = right and worst <= (FIRST_TOLERANCE if step == 1 else TOLERANCE)
        print(f"{step:>4} {ours[0]:>12.6f} {theirs[0]:>12.6f} {ours[1]:>12.6f} {theirs[1]:>12.6f}")
    print("ok" if right else "WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
