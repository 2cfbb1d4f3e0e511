#!/usr/bin/env python3
"""Measures the error of linear attention in 16 bits against its recurrence in float64, and prints one table.

    accuracy.py [--heddle PROGRAM] [--device cpu|cuda] [--length N] [--dim D]

Every row has one decay for all tokens, and queries, keys, values and upstream gradients from a normal distribution; in
the last rows keys and values are near 10, so that the state leaves the range of float16. An error is the norm of the
difference over the norm of the exact result, for each of o, d_q, d_k and d_v; beside it stands the error that rounding
the exact result once to the dtype has.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
RESULTS = ("o", "d_q", "d_k", "d_v")


def recurrence(q, k, v, d_o, log_decay: float, scale: float) -> dict[str, torch.Tensor]:
    """The exact results; all tensors are (1, N, H, D) in float64."""
    length, heads, dim = q.shape[1:]
    decay = torch.tensor(log_decay, dtype=torch.float64).exp()
    result = {name: torch.zeros_like(q) for name in RESULTS}
    state = torch.zeros(heads, dim, v.shape[-1], dtype=torch.float64)
    for t in range(length):
        state = decay * state + torch.einsum("hd,he->hde", k[0, t], v[0, t])
        result["o"][0, t] = scale * torch.einsum("hd,hde->he", q[0, t], state)
        result["d_q"][0, t] = scale * torch.einsum("he,hde->hd", d_o[0, t], state)
    d_state = torch.zeros_like(state)
    for t in reversed(range(length)):
        d_state = d_state + scale * torch.einsum("hd,he->hde", q[0, t], d_o[0, t])
        result["d_k"][0, t] = torch.einsum("hde,he->hd", d_state, v[0, t])
        result["d_v"][0, t] = torch.einsum("hde,hd->he", d_state, k[0, t])
        d_state = decay * d_state
    return result


def run_heddle(program: str, device: str, dtype: str, inputs: dict[str, torch.Tensor], scale: float, folder: Path):
    spec, given, found = folder / "spec.yaml", folder / "in.safetensors", folder / "out.safetensors"
    spec.write_text(f"layer: linear_attention\noptions: {{decay: constant, scale: {scale!r}, return_final_state: false}}\n")
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, given)
    subprocess.run([program, "run-layer", spec, "--inputs", given, "--outputs", found, "--device", device,
                    "--dtype", dtype], check=True)
    return load_file(found)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--heddle", default=str(Path(__file__).resolve().parents[1] / "build/cpu/heddle"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    shape, scale = (1, arguments.length, 2, arguments.dim), arguments.dim**-0.5
    generator = torch.Generator().manual_seed(0)
    print("| dtype | log decay | keys and values | " + " | ".join(f"{name}: rounding, {arguments.device}" for name in RESULTS)
          + " |\n|---|---|---|" + "---|" * len(RESULTS))
    for dtype, torch_dtype in DTYPES.items():
        for log_decay, center in ((-1e-5, 0.0), (-0.004, 0.0), (-0.5, 0.0), (-1e-5, 10.0)):
            # Where the state is large the queries are small, so that no result leaves the range of float16.
            small = 1e-3 if center else 1.0
            inputs = {name: (torch.randn(shape, generator=generator) * (small if name in ("q", "d_o") else 1.0)
                             + (center if name in ("k", "v") else 0.0)).to(torch_dtype) for name in ("q", "k", "v", "d_o")}
            decays = torch.full((2,), log_decay, dtype=torch.float32)
            exact = recurrence(*(tensor.double() for tensor in inputs.values()), float(decays[0]), scale)
            with tempfile.TemporaryDirectory() as folder:
                found = run_heddle(arguments.heddle, arguments.device, dtype, {**inputs, "log_decay": decays}, scale,
                                   Path(folder))
            cells = [f"{error(exact[name].to(torch_dtype), exact[name]):.2e}, {error(found[name], exact[name]):.2e}"
                     for name in RESULTS]
            print(f"| {dtype} | {log_decay:g} | near {center:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
