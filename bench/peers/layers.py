#!/usr/bin/env python3
"""Compares operators of heddle with PyTorch, forward and backward, through `heddle run-layer`.

    layers.py [--heddle PROGRAM] [--device cpu|cuda] [--dtype float64 float32 bfloat16 ...] [--every N] [LAYER ...]

The cases are those of heddle's own tests, as `heddle gradcheck --list` gives them. The formulas of operators.py run in
float64 on the inputs rounded to the dtype; an element may be off by the dtype's tolerance times the largest element of
its tensor. One line a case, exit code 1 when one is wrong.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import operators

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
# How an input is drawn says what it is stored in: these stay in float32 (float64 for float64) whatever the dtype.
FULL_PRECISION = ("full_precision_parameter", "angle", "decay", "state")
FORMULAS = {**{name: operators.norm for name in ("layer_norm", "rms_norm", "srms_norm", "group_norm", "group_rms_norm",
                                                 "group_srms_norm")},
            **{name: getattr(operators, name)
               for name in ("linear", "embedding", "activation", "glu_product", "glu", "ffn", "dropout", "cross_entropy",
                            "linear_cross_entropy", "log_sigmoid", "softmax", "guarded_divide", "linear_attention", "softmax_attention",
                            "lrpe_rotate", "lrpe_cosine")}}


def layer(name: str) -> str:
    """The name of an operator, as argparse reads it."""
    if name not in FORMULAS:
        raise argparse.ArgumentTypeError(f"found {name!r}, expected one of {', '.join(FORMULAS)}")
    return name


@dataclass
class Case:
    name: str
    operator: str
    options: dict
    inputs: list[dict]
    large: bool
    cpu_only: bool

    def kind(self, name: str) -> str:
        return next(i["kind"] for i in self.inputs if i["name"] == name)


def all_cases(program: str, device: str) -> list[Case]:
    """The small ones that the device has kernels for."""
    listed = subprocess.run([program, "gradcheck", "--list"], capture_output=True, text=True, check=True).stdout
    cases = [Case(**case) for case in json.loads(listed)]
    return [case for case in cases if not case.large and not (case.cpu_only and device.startswith("cuda"))]


def make_inputs(case: Case, dtype: torch.dtype, generator: torch.Generator) -> operators.Tensors:
    inputs = {}
    for given in case.inputs:
        name, shape = given["name"], given["shape"]
        if given["kind"] in ("tokens", "segments"):
            drawn = torch.randint(given["range"], shape, generator=generator, dtype=torch.int32)
            inputs[name] = drawn.sort(-1).values if given["kind"] == "segments" else drawn
            continue
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = -values.abs() if given["kind"] == "decay" else values + given["mean"]
        full = torch.float64 if dtype == torch.float64 else torch.float32
        inputs[name] = (given["scale"] * values).to(full if given["kind"] in FULL_PRECISION else dtype)
    return inputs


def run_torch(case: Case, inputs: operators.Tensors, generator: torch.Generator) -> tuple[operators.Tensors, ...]:
    """Outputs and gradients in float64, and the upstream gradients that led to them."""
    exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    outputs, leaves = forward(case, exact)
    dtype = storage_dtype(case, inputs)
    upstream = {}
    for name, output in outputs.items():
        is_exact = name in ("final_state", "loss") and dtype != torch.float64
        values = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        upstream["d_" + name] = values.to(torch.float32 if is_exact else dtype)
    return backward(outputs, leaves, upstream), upstream


def run_torch_as_stored(case: Case, inputs: operators.Tensors, upstream: operators.Tensors) -> operators.Tensors:
    """Outputs and gradients as PyTorch computes them in the dtypes of the inputs, one operator after the other."""
    outputs, leaves = forward(case, inputs)
    return backward(outputs, leaves, upstream)


def storage_dtype(case: Case, inputs: operators.Tensors) -> torch.dtype:
    return next(v.dtype for k, v in inputs.items() if v.is_floating_point() and case.kind(k) not in FULL_PRECISION)


def forward(case: Case, inputs: operators.Tensors) -> tuple[operators.Tensors, ...]:
    """Outputs of the formula, and the leaves that it computed them from."""
    fixed = {i["name"] for i in case.inputs if not i["differentiate"]}
    leaves = {name: value.detach().clone().requires_grad_(name not in fixed) if value.is_floating_point() else value
              for name, value in inputs.items()}
    return FORMULAS[case.operator](case.operator, leaves, case.options), leaves


def backward(outputs: operators.Tensors, leaves: operators.Tensors, upstream: operators.Tensors) -> operators.Tensors:
    """The outputs and the gradients of the leaves."""
    torch.autograd.backward(list(outputs.values()), [upstream["d_" + name].to(o.dtype) for name, o in outputs.items()])
    results = {name: output.detach() for name, output in outputs.items()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            results["d_" + name] = leaf.grad
    return results


def run_heddle(arguments: argparse.Namespace,
               given: list[tuple[Case, operators.Tensors]]) -> list[operators.Tensors | str]:
    """The outputs and gradients of each case, or what heddle says where it refuses one. One process for them all."""
    if not given:
        return []
    with tempfile.TemporaryDirectory() as folder:
        specs, inputs, outputs = ([str(Path(folder) / f"{i}.{name}") for i in range(len(given))]
                                  for name in ("yaml", "in", "out"))
        for i, (case, tensors) in enumerate(given):
            # JSON is YAML.
            Path(specs[i]).write_text(json.dumps({"layer": case.operator, "options": case.options}))
            save_file({name: value.contiguous() for name, value in tensors.items()}, inputs[i])
        command = [arguments.heddle, "run-layer", *specs, "--inputs", *inputs, "--outputs", *outputs]
        done = subprocess.run([*command, "--device", arguments.device], capture_output=True, text=True)
        refusals = iter(line for line in done.stderr.splitlines() if line.startswith("error: "))
        results: list[operators.Tensors | str] = []
        for i, (case, _) in enumerate(given):
            if not Path(outputs[i]).exists():
                results.append(next(refusals, done.stderr))
                continue
            fixed = {"d_" + i["name"] for i in case.inputs if not i["differentiate"]}
            results.append({name: value for name, value in load_file(outputs[i]).items() if name not in fixed})
        return results


def worst_error(found: operators.Tensors, expected: operators.Tensors) -> tuple[float, str]:
    if found.keys() != expected.keys():
        raise RuntimeError(f"found tensors {sorted(found)}, expected {sorted(expected)}")
    worst = (0.0, "")
    for name, right in expected.items():
        error = (found[name].double() - right).abs().max() / right.abs().max().clamp(min=1e-30)
        worst = max(worst, (float("inf") if error.isnan() else error.item(), name))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", type=layer, metavar="LAYER")
    parser.add_argument("--heddle", default=ROOT / "build/cpu/heddle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, default=["float64", "float32", "bfloat16"])
    parser.add_argument("--every", type=int, default=1, help="only every N-th small case")
    arguments = parser.parse_args()
    cases = all_cases(str(arguments.heddle), arguments.device)
    cases = [case for case in cases[::arguments.every] if not arguments.layers or case.operator in arguments.layers]
    wrong = 0
    for dtype in arguments.dtype:
        given, expected = [], []
        for case in cases:
            if case.operator not in FORMULAS:
                sys.exit(f"operators.py has no formula for {case.operator}: add one, and name it in FORMULAS")
            generator = torch.Generator().manual_seed(1)
            inputs = make_inputs(case, getattr(torch, dtype), generator)
            right, upstream = run_torch(case, inputs, generator)
            given.append((case, {**inputs, **upstream}))
            expected.append(right)
        for case, found, right in zip(cases, run_heddle(arguments, given), expected):
            error, where = (float("inf"), found) if isinstance(found, str) else worst_error(found, right)
            is_right = error <= TOLERANCE[dtype]
            wrong += not is_right
            print(f"{'ok   ' if is_right else 'WRONG'} {dtype:<8} {case.name}: {error:9.1e} in {where}")
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
