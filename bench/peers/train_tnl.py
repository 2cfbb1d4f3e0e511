#!/usr/bin/env python3
"""Trains the model of a heddle config (configs/toy_kjv.yaml) in PyTorch on the CPU and prints tokens per second.

    train_tnl.py [--config FILE] [--threads N] [--steps N] [--compile]     speed, one JSON row a line
    train_tnl.py --check RUN                        the validation loss of a finished run of heddle, computed here

The step is what heddle's is: float32, forward, backward, clipping of the global norm, AdamW on matrices with decay.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from config import load_config
from tnl import CHUNK, LanguageModel
from training import TrainingStep

ROOT = Path(__file__).resolve().parents[2]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/toy_kjv.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--attention", choices=("auto", "chunked", "quadratic"), default="auto",
                        help="auto: both are timed, the faster one is used")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager")
    parser.add_argument("--check", type=Path, metavar="RUN", help="a run folder of heddle with a text")
    return parser.parse_args()


def read_tokens(config: dict) -> torch.Tensor:
    """The text's bytes; random ones when it is not there, which costs the same."""
    path = Path(config["data"].get("path", ""))
    for place in (path, ROOT / path):
        if place.is_file():
            return torch.from_numpy(np.fromfile(place, dtype=np.uint8)).long()
    print("train_tnl: no text at data.path, random bytes instead", file=sys.stderr)
    return torch.randint(config["model"]["vocab_size"], (1 << 20,))


class Trainer:
    def __init__(self, config: dict, attention: str, compiled: bool):
        trainer = config["trainer"]
        self.batch, self.length = trainer["batch_size"], trainer["sequence_length"]
        self.tokens = read_tokens(config)
        self.take_step = TrainingStep(config, attention, compiled)
        self.model = self.take_step.model

    def step(self) -> None:
        begins = torch.randint(self.tokens.numel() - self.length, (self.batch, 1))
        windows = self.tokens[begins + torch.arange(self.length + 1)]
        self.take_step([(windows[:, :-1], windows[:, 1:])])

    def seconds(self, warmup: int, steps: int) -> list[float]:
        for _ in range(warmup):
            self.step()
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - begin)
        return times


def measure(config: dict, arguments: argparse.Namespace) -> dict:
    choices = ("chunked", "quadratic") if arguments.attention == "auto" else (arguments.attention,)
    trainers = {name: Trainer(config, name, arguments.compile) for name in choices}
    if len(trainers) > 1:
        trial = {name: min(trainer.seconds(arguments.warmup, 3)) for name, trainer in trainers.items()}
        trainers = {min(trial, key=trial.get): trainers[min(trial, key=trial.get)]}
    (attention, trainer), = trainers.items()
    times = trainer.seconds(arguments.warmup, arguments.steps)
    tokens = trainer.batch * trainer.length
    return {
        "suite": "training", "config": arguments.config.stem, "pass": "step", "quantity": "speed", "n": tokens,
        "dtype": "float32", "device": "cpu", "value": tokens * len(times) / sum(times), "unit": "tokens/s",
        "median": tokens / statistics.median(times), "threads": arguments.threads, "steps": len(times),
        "peer": f"torch {torch.__version__} {'compile' if arguments.compile else 'eager'}", "attention": attention,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def validation_windows(config: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (windows, length): those of heddle, spread evenly over the end of the text, or all of it with
    zeros and targets that do not count (-100) after its last token."""
    trainer, tokens = config["trainer"], read_tokens(config)
    length, total = trainer["sequence_length"], tokens.numel()
    tokens = tokens[total - int(total * config["data"]["validation_fraction"]):]
    windows, rest = divmod(len(tokens) - 1, length)
    asked = trainer["eval_batches"]
    asked = windows + 1 if asked == "all" else asked * trainer["batch_size"] * trainer["accumulate"]
    if asked <= windows:
        begins = torch.arange(asked) * windows // asked * length
        return tokens[begins[:, None] + torch.arange(length)], tokens[begins[:, None] + torch.arange(length) + 1]
    padding = -rest % length
    inputs, targets = F.pad(tokens[:-1], (0, padding)), F.pad(tokens[1:], (0, padding), value=-100)
    return inputs.view(-1, length), targets.view(-1, length)


def check(run: Path, tolerance: float = 1e-4) -> bool:
    """Compares the validation loss of the last step in metrics.csv with that of the same weights here."""
    config = load_config(run / "config.yaml")
    with open(run / "metrics.csv") as file:
        last = [row for row in csv.DictReader(file) if row["validation_loss"]][-1]
    model = LanguageModel(config["model"], config["trainer"]["sequence_length"], "chunked")
    model.load_state_dict(load_file(run / f"checkpoints/step_{last['step']}/model.safetensors"))
    with torch.no_grad():
        parts = zip(*(windows.split(16) for windows in validation_windows(config)))
        losses = [(model(inputs, targets).item(), (targets != -100).sum().item()) for inputs, targets in parts]
    ours = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    theirs = float(last["validation_loss"])
    right = abs(ours - theirs) <= tolerance
    print(f"step {last['step']}: validation loss {theirs:.6f} in heddle, {ours:.6f} here: {'ok' if right else 'WRONG'}")
    return right


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        return 0 if check(arguments.check) else 1
    config = load_config(arguments.config)
    if config["trainer"]["sequence_length"] % CHUNK != 0:
        sys.exit(f"train_tnl: trainer.sequence_length must be a multiple of {CHUNK}")
    print(json.dumps(measure(config, arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
