#!/usr/bin/env python3
"""Compares every operator of heddle with PyTorch on random shapes, values and gradients, and prints one table.

    parity.py [--heddle PROGRAM] [--device cpu|cuda] [--cases N] [--seed S] [--dtype float32 ...] [LAYER ...]

Options are those of heddle's own cases (`heddle gradcheck --list`), N of them for each operator drawn at random; the
extents of their inputs are drawn anew, odd ones among them. The formulas of peers/operators.py run in float64 on the
rounded inputs. An error is the largest difference of a tensor over its largest element; in 16 bits it is counted in
roundings, which are half a unit in the last place of that element. Beside each error stands that of PyTorch where it
computes the same formula in the dtype itself, one operator after the other. Exit code 1 when an operator is beyond the
limit: 1e-5 for values and 1e-4 for gradients in float32; in 16 bits 2 roundings, or PyTorch's own error where operators
round on the way and that is larger, up to a bound of its own.
"""

import argparse
import copy
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import torch

import layers
import operators

EXTENTS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 128, 130)
LARGEST = 1 << 16
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# The limits of values and of gradients: fractions in float32, roundings in 16 bits.
LIMITS = {"float32": (1e-5, 1e-4), "float16": (2.0, 2.0), "bfloat16": (2.0, 2.0)}
# How far PyTorch's own error may raise those of 16 bits: gradients pass through values of 16 bits. Chains of operators round
# what they hand on, and norms the sum of x and residual, whose mean is taken off after that: these bounds times those below.
RAISED = (2.0, 8.0)
CHAINS = {"glu": 3.0, "ffn": 3.0, "glu_product": 2.0, "layer_norm": 2.0, "group_norm": 2.0}
KINDS = ("values", "gradients")


def with_new_extents(case: layers.Case, draw: random.Random) -> layers.Case:
    """The case with other extents: equal ones stay equal, and no input has more than LARGEST elements."""
    extents = sorted({extent for given in case.inputs for extent in given["shape"]})
    drawn = {}
    while not drawn or any(math.prod(drawn[e] for e in given["shape"]) > LARGEST for given in case.inputs):
        drawn = {extent: draw.choice(EXTENTS) for extent in extents}
    changed = copy.deepcopy(case)
    for given in changed.inputs:
        given["shape"] = [drawn[extent] for extent in given["shape"]]
        given["range"] = drawn.get(given["range"], given["range"])
    shapes = ", ".join(f"{given['name']} {tuple(given['shape'])}" for given in changed.inputs)
    changed.name = f"{case.operator} {case.options} {shapes}"
    return changed


class Trial:
    """One case in one dtype: drawn on new extents until neither side refuses them, at last on its own."""

    ATTEMPTS = 8

    def __init__(self, case: layers.Case, dtype: str, seed: int):
        self.case, self.dtype, self.seed = case, dtype, seed
        self.draw, self.attempts = random.Random(seed), 0
        self.worst: dict[str, tuple[float, str]] = {}  # of values and of gradients, when it has run
        self.of_torch: dict[str, tuple[float, str]] = {}  # the same of PyTorch in the dtype itself, where it can

    def next_inputs(self) -> tuple[layers.Case, operators.Tensors]:
        """Draws until PyTorch accepts; notes what it computes."""
        while True:
            self.attempts += 1
            is_last = self.attempts > self.ATTEMPTS
            self.drawn = self.case if is_last else with_new_extents(self.case, self.draw)
            generator = torch.Generator().manual_seed(self.seed)
            try:
                self.inputs = layers.make_inputs(self.drawn, getattr(torch, self.dtype), generator)
                self.expected, self.upstream = layers.run_torch(self.drawn, self.inputs, generator)
                return self.drawn, {**self.inputs, **self.upstream}
            except (RuntimeError, ValueError, IndexError, AssertionError):
                if is_last:
                    raise

    def take(self, found: operators.Tensors | str) -> bool:
        """Notes the worst errors; False when heddle refused these extents and others are to be tried."""
        if isinstance(found, str):
            if self.attempts > self.ATTEMPTS:
                sys.exit(f"{self.drawn.name}: {found}")
            return False
        self.worst = self.errors(found)
        try:
            self.of_torch = self.errors(layers.run_torch_as_stored(self.drawn, self.inputs, self.upstream))
        except RuntimeError:  # it does not multiply tensors of different dtypes
            pass
        return True

    def errors(self, found: operators.Tensors) -> dict[str, tuple[float, str]]:
        errors = {}
        for kind in KINDS:
            wanted = {name: value for name, value in self.expected.items()
                      if name.startswith("d_") == (kind == "gradients")}
            error, name = layers.worst_error({name: found[name] for name in wanted}, wanted) if wanted else (0.0, "")
            error = error if self.dtype == "float32" else error / ROUNDING[self.dtype]
            errors[kind] = (error, f"{name} of {self.drawn.name}")
        return errors


def run_all(arguments: argparse.Namespace, trials: list[Trial]) -> None:
    """One process of heddle for all of them, then others for those that it refused."""
    while trials:
        found = layers.run_heddle(arguments, [trial.next_inputs() for trial in trials])
        trials = [trial for trial, result in zip(trials, found) if not trial.take(result)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", type=layers.layer, metavar="LAYER")
    parser.add_argument("--heddle", default=layers.ROOT / "build/cpu/heddle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", type=int, default=12, help="of each operator and dtype")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", choices=LIMITS, default=list(LIMITS))
    arguments = parser.parse_args()
    by_operator: dict[str, list[layers.Case]] = {}
    for case in layers.all_cases(str(arguments.heddle), arguments.device):
        if not arguments.layers or case.operator in arguments.layers:
            by_operator.setdefault(case.operator, []).append(case)
    rows: dict[tuple[str, str], list[Trial]] = {}
    for operator, cases in by_operator.items():
        for dtype in arguments.dtype:
            draw = random.Random(f"{arguments.seed} {operator} {dtype}")
            rows[operator, dtype] = [Trial(draw.choice(cases), dtype, arguments.seed + i)
                                     for i in range(arguments.cases)]
    run_all(arguments, [trial for row in rows.values() for trial in row])
    print(f"{'operator':<20} {'dtype':<9} {'cases':>5} {'values':>10} {'PyTorch':>10} {'gradients':>10} {'PyTorch':>10}")
    beyond = 0
    for (operator, dtype), row in rows.items():
        worst = {kind: max(trial.worst[kind] for trial in row) for kind in KINDS}
        of_torch = {kind: max((trial.of_torch[kind] for trial in row if trial.of_torch), default=(0.0, ""))
                    for kind in KINDS}
        limits = LIMITS[dtype]
        if dtype != "float32":
            limits = [max(limit, min(of_torch[kind][0], most * CHAINS.get(operator, 1.0)))
                      for kind, limit, most in zip(KINDS, limits, RAISED)]
        right = all(worst[kind][0] <= limit for kind, limit in zip(KINDS, limits))
        beyond += not right
        show = "{:10.1e}" if dtype == "float32" else "{:10.2f}"
        errors = [error for kind in KINDS for error in (worst[kind], of_torch[kind])]
        print(f"{operator:<20} {dtype:<9} {len(row):5} " +
              " ".join(show.format(error) if where else f"{'-':>10}" for error, where in errors) +
              ("" if right else "  BEYOND"))
        if not right:
            for kind, (error, where) in worst.items():
                print(f"    {kind}: {error:.3g} in {where}")
    print(f"{beyond} beyond the limit")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
