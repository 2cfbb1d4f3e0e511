#!/usr/bin/env python3
"""Compares every operator of heddle with PyTorch on random shapes, values and gradients, and prints one table.

    parity.py [--heddle PROGRAM] [--device cpu|cuda] [--cases N] [--seed S] [--jobs N] [--dtype float32 ...] [LAYER ...]

Options are those of heddle's own cases (`heddle gradcheck --list`), N of them for each operator drawn at random; the
extents of their inputs are drawn anew, odd ones among them. The formulas of peers/operators.py run in float64 on the
rounded inputs. An error is the largest difference of a tensor over its largest element; in 16 bits it is counted in
roundings, which are half a unit in the last place of that element. Exit code 1 when an operator is beyond the limit:
1e-5 for values and 1e-4 for gradients in float32, 2 roundings for values in 16 bits.
"""

import argparse
import copy
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import torch

import layers

EXTENTS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 128, 130)
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# The limits of values and of gradients: fractions in float32, roundings in 16 bits. Chains of operators round what they
# hand on, and gradients of 16 bits pass through values of 16 bits.
LIMITS = {"float32": (1e-5, 1e-4), "float16": (2.0, 8.0), "bfloat16": (2.0, 8.0)}
CHAINS = {"glu": 3.0, "ffn": 3.0, "glu_product": 2.0}  # roundings on the way: the limits of 16 bits times these


def with_new_extents(case: layers.Case, draw: random.Random) -> layers.Case:
    """The case with other extents: equal ones stay equal."""
    changed = copy.deepcopy(case)
    extents = sorted({extent for given in case.inputs for extent in given["shape"]})
    drawn = {extent: draw.choice(EXTENTS) for extent in extents}
    for given in changed.inputs:
        given["shape"] = [drawn[extent] for extent in given["shape"]]
        given["range"] = drawn.get(given["range"], given["range"])
    shapes = ", ".join(f"{given['name']} {tuple(given['shape'])}" for given in changed.inputs)
    changed.name = f"{case.operator} {case.options} {shapes}"
    return changed


def errors(arguments: argparse.Namespace, case: layers.Case, dtype: str, seed: int) -> dict[str, tuple[float, str]]:
    """The worst errors of values and of gradients."""
    generator = torch.Generator().manual_seed(seed)
    inputs = layers.make_inputs(case, getattr(torch, dtype), generator)
    expected, upstream = layers.run_torch(case, inputs, generator)
    found = layers.run_heddle(arguments, case, {**inputs, **upstream})
    worst = {}
    for kind in ("values", "gradients"):
        wanted = {name: value for name, value in expected.items() if name.startswith("d_") == (kind == "gradients")}
        error, name = layers.worst_error({name: found[name] for name in wanted}, wanted) if wanted else (0.0, "")
        worst[kind] = (error if dtype == "float32" else error / ROUNDING[dtype], f"{name} of {case.name}")
    return worst


def measure(arguments: argparse.Namespace, case: layers.Case, dtype: str, seed: int) -> dict[str, tuple[float, str]]:
    """On new extents; on the case's own where its options fix them, so that others are refused."""
    draw = random.Random(seed)
    for _ in range(8):
        try:
            return errors(arguments, with_new_extents(case, draw), dtype, seed)
        except (RuntimeError, ValueError, IndexError):  # refused by heddle or by PyTorch
            continue
    return errors(arguments, case, dtype, seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER")
    parser.add_argument("--heddle", default=layers.ROOT / "build/cpu/heddle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", type=int, default=12, help="of each operator and dtype")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="programs side by side")
    parser.add_argument("--dtype", nargs="+", choices=LIMITS, default=list(LIMITS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    by_operator: dict[str, list[layers.Case]] = {}
    for case in layers.all_cases(str(arguments.heddle)):
        if not case.large and (not arguments.layers or case.operator in arguments.layers):
            by_operator.setdefault(case.operator, []).append(case)
    print(f"{'operator':<18} {'dtype':<9} {'cases':>5} {'values':>10} {'gradients':>10}")
    beyond = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for operator, cases in by_operator.items():
            for dtype in arguments.dtype:
                draw = random.Random(f"{arguments.seed} {operator} {dtype}")
                chosen = [draw.choice(cases) for _ in range(arguments.cases)]
                results = list(pool.map(lambda i: measure(arguments, chosen[i], dtype, arguments.seed + i),
                                        range(len(chosen))))
                worst = {kind: max(result[kind] for result in results) for kind in ("values", "gradients")}
                factor = CHAINS.get(operator, 1.0) if dtype != "float32" else 1.0
                right = all(worst[kind][0] <= limit * factor for kind, limit in zip(worst, LIMITS[dtype]))
                beyond += not right
                show = "{:10.1e}" if dtype == "float32" else "{:10.2f}"
                print(f"{operator:<18} {dtype:<9} {len(chosen):5} " +
                      " ".join(show.format(worst[kind][0]) for kind in worst) + ("" if right else "  BEYOND"), flush=True)
                if not right:
                    for kind, (error, where) in worst.items():
                        print(f"    {kind}: {error:.3g} in {where}")
    print(f"{beyond} beyond the limit")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
