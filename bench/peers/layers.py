#!/usr/bin/env python3
"""Compares operators of heddle with PyTorch, forward and backward, through `heddle run-layer`.

    layers.py [--heddle PROGRAM] [--device cpu|cuda] [--dtype float64 float32 bfloat16 ...] [LAYER ...]

The formulas of operators.py run in float64 on the inputs rounded to the dtype; an element may be off by the dtype's
tolerance times the largest element of its tensor. One line a case, exit code 1 when one is wrong.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import operators

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
# Kept in float32 (float64 for float64) whatever the dtype.
EXACT = ("theta", "log_decay", "initial_state")


@dataclass
class Case:
    layer: str
    formula: object
    shapes: dict[str, tuple[int, ...]]
    options: dict = field(default_factory=dict)
    fixed: tuple[str, ...] = ()  # inputs without a gradient
    bound: int = 0  # of index inputs


def norm_cases() -> list[Case]:
    x = (3, 5, 48)
    parameters = {"weight": (48,), "bias": (48,)}
    cases = []
    for name in ("layer_norm", "rms_norm", "srms_norm", "group_norm", "group_rms_norm", "group_srms_norm"):
        groups = {"groups": 4} if name.startswith("group") else {}
        cases.append(Case(name, operators.norm, {"x": x}, {"eps": 1e-6, **groups}))
        cases.append(Case(name, operators.norm, {"x": x, "residual": x, **parameters}, {"scale": 0.5, **groups}))
        for position in ("pre", "post"):
            for act in ("none", "relu", "sigmoid", "silu"):
                cases.append(Case(name, operators.norm, {"x": x, "residual": x, "gate": x, **parameters},
                                  {"gate": {"act": act, "position": position}, **groups}))
    return cases


def rotate_cases() -> list[Case]:
    shapes = {"x": (2, 37, 3, 16), "theta": (3, 8)}
    options = [{}, {"act": "silu", "offset": 1000}, {"act": "relu", "pairing": "interleaved"},
               {"act": "softmax", "act_dim": "feature"}, {"act": "softmax", "act_dim": "sequence"}]
    cases = [Case("lrpe_rotate", operators.lrpe_rotate, shapes, o) for o in options]
    return cases + [Case("lrpe_rotate", operators.lrpe_rotate, {"x": (2, 5, 3, 16), "theta": (1, 5)})]


def cosine_cases() -> list[Case]:
    def case(x: tuple[int, ...], theta: tuple[int, ...], **options) -> Case:
        return Case("lrpe_cosine", operators.lrpe_cosine, {"x": x, "theta": theta}, options)

    one_axis = ((2, 37, 3, 16), (3, 16))
    return [case(*one_axis), case(*one_axis, act="silu", offset=1000), case(*one_axis, act="relu", extra_tokens=5),
            case(*one_axis, act="softmax", act_dim="feature"), case(*one_axis, act="softmax", act_dim="sequence"),
            case((2, 3, 37, 16), (1, 8), layout="bhnd", shape=[5, 7], extra_tokens=2, act="sigmoid"),
            case((2, 24, 3, 16), (3, 6), shape=[2, 3, 4]), case((2, 24, 3, 7), (1, 2), shape=[2, 3, 2, 2])]


def attention_cases() -> list[Case]:
    qkv = {"q": (2, 150, 3, 16), "k": (2, 150, 3, 16), "v": (2, 150, 3, 24)}
    decay = {**qkv, "log_decay": (3,)}
    state = {**decay, "initial_state": (2, 3, 16, 24)}
    constant = {"decay": "constant"}
    return [Case("linear_attention", operators.linear_attention, qkv, {"decay": "none", "scale": 0.25}),
            Case("linear_attention", operators.linear_attention, decay, constant, ("log_decay",)),
            Case("linear_attention", operators.linear_attention, state, constant, ("log_decay",))]


def dense_cases() -> list[Case]:
    x = {"x": (3, 11, 24)}
    weights = {"weight": (17, 24), "bias": (17,)}
    logits = {"logits": (4, 9, 50), "targets": (4, 9)}
    smoothed = {"ignore_index": 3, "label_smoothing": 0.1}
    cases = [Case("linear", operators.linear, {**x, "weight": (17, 24)}),
             Case("linear", operators.linear, {**x, **weights}),
             Case("embedding", operators.embedding, {"tokens": (5, 40), "weight": (30, 24)}, bound=30),
             Case("cross_entropy", operators.cross_entropy, logits, bound=50),
             Case("cross_entropy", operators.cross_entropy, logits, smoothed, bound=50)]
    for act in ("relu", "sigmoid", "silu"):
        cases += [Case("activation", operators.activation, x, {"act": act}),
                  Case("glu_product", operators.glu_product, {"a": (7, 24), "b": (7, 24)}, {"act": act}),
                  Case("glu", operators.glu, {**x, "w12": (32, 24), "w3": (24, 16)}, {"act": act}),
                  Case("ffn", operators.ffn, {**x, "w1": (32, 24), "w2": (24, 32)}, {"act": act})]
    return cases


def all_cases() -> list[Case]:
    return norm_cases() + dense_cases() + rotate_cases() + cosine_cases() + attention_cases()


def make_inputs(case: Case, dtype: torch.dtype, generator: torch.Generator) -> operators.Tensors:
    inputs = {}
    for name, shape in case.shapes.items():
        if case.bound and name in ("tokens", "targets"):
            inputs[name] = torch.randint(case.bound, shape, generator=generator, dtype=torch.int32)
            continue
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = -values.abs() / 8 if name == "log_decay" else values
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        inputs[name] = values.to(exact if name in EXACT else dtype)
    return inputs


def run_torch(case: Case, inputs: operators.Tensors, generator: torch.Generator) -> tuple[operators.Tensors, ...]:
    """Outputs and gradients in float64, and the upstream gradients that led to them."""
    leaves = {}
    for name, value in inputs.items():
        leaves[name] = value.double().requires_grad_(name not in case.fixed) if value.is_floating_point() else value
    outputs = case.formula(case.layer, leaves, case.options)
    dtype = next(v.dtype for k, v in inputs.items() if v.is_floating_point() and k not in EXACT)
    upstream = {}
    for name, output in outputs.items():
        exact = name in ("final_state", "loss") and dtype != torch.float64
        values = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        upstream["d_" + name] = values.to(torch.float32 if exact else dtype)
    torch.autograd.backward(list(outputs.values()), [u.double() for u in upstream.values()])
    expected = {name: output.detach() for name, output in outputs.items()}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            expected["d_" + name] = leaf.grad
    return expected, upstream


def run_heddle(arguments: argparse.Namespace, case: Case, given: operators.Tensors) -> operators.Tensors:
    with tempfile.TemporaryDirectory() as folder:
        spec, inputs, outputs = (str(Path(folder) / name) for name in ("spec.yaml", "in", "out"))
        # JSON is YAML.
        Path(spec).write_text(json.dumps({"layer": case.layer, "options": case.options}))
        save_file({name: value.contiguous() for name, value in given.items()}, inputs)
        command = [arguments.heddle, "run-layer", spec, "--inputs", inputs, "--outputs", outputs]
        done = subprocess.run([*command, "--device", arguments.device], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return load_file(outputs)


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
    parser.add_argument("layers", nargs="*", metavar="LAYER")
    parser.add_argument("--heddle", default=ROOT / "build/cpu/heddle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, default=["float64", "float32", "bfloat16"])
    arguments = parser.parse_args()
    wrong = 0
    for case in all_cases():
        if arguments.layers and case.layer not in arguments.layers:
            continue
        for dtype in arguments.dtype:
            generator = torch.Generator().manual_seed(1)
            inputs = make_inputs(case, getattr(torch, dtype), generator)
            expected, upstream = run_torch(case, inputs, generator)
            try:
                error, tensor = worst_error(run_heddle(arguments, case, {**inputs, **upstream}), expected)
                right = error <= TOLERANCE[dtype]
                line = f"{error:9.1e} in {tensor}"
            except RuntimeError as reason:
                right, line = False, str(reason)
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {dtype:<8} {case.layer} {json.dumps(case.options)}: {line}")
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
