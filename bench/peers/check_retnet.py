#!/usr/bin/env python3
"""Loads what `heddle export --format fla --logits N` wrote into RetNetForCausalLM of flash-linear-attention, by name,
and compares its logits with heddle's.

    check_retnet.py DIR

It needs flash-linear-attention 0.6 and transformers beside torch and safetensors. Without a GPU the Triton kernels of
the former do not run: then each function that would call one is replaced by its formula in PyTorch, and everything else
(the modules, the names, the wiring) is its own.
"""

import argparse
import sys
from pathlib import Path

import fla.layers.multiscale_retention as retention_layer
import fla.modules.norm.fused_norm_gate as gated_norm
import fla.modules.norm.layernorm as layer_norm
import fla.modules.rotary.ops as rotary
import torch
import torch.nn.functional as F
from fla.models.retnet import RetNetConfig, RetNetForCausalLM
from fla.modules.norm.layernorm import rms_norm_ref
from fla.ops.retention.naive import naive_retention
from safetensors.torch import load_file

TOLERANCE = 1e-4  # of the largest logit


def plain_rms_norm(x, weight, bias, residual=None, eps=1e-6, prenorm=False, residual_in_fp32=False):
    return rms_norm_ref(x, weight, bias, residual, eps, prenorm)


def plain_rms_norm_gated(x, g, weight, bias, activation, residual, prenorm, residual_in_fp32, eps):
    assert activation == "swish" and residual is None and not prenorm
    return rms_norm_ref(x, weight, bias, eps=eps) * F.silu(g)


def plain_rotary_embedding(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, **others):
    length = x.shape[1]
    return rotary.rotary_embedding_ref(x, cos[seqlen_offsets:][:length], sin[seqlen_offsets:][:length], interleaved)


def plain_retention(q, k, v, initial_state=None, output_final_state=False, cu_seqlens=None):
    assert initial_state is None
    return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None


def use_formulas(model: RetNetForCausalLM) -> None:
    layer_norm.rms_norm = plain_rms_norm
    gated_norm.rms_norm_gated = plain_rms_norm_gated
    rotary.rotary_embedding = plain_rotary_embedding
    retention_layer.chunk_retention = retention_layer.fused_recurrent_retention = plain_retention
    for layer in model.model.layers:
        layer.mlp.swiglu_linear.forward = lambda x, y, weight, bias: F.linear(F.silu(x) * y, weight, bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    model = RetNetForCausalLM(RetNetConfig.from_pretrained(folder))
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    if model.config.tie_word_embeddings:  # its state_dict names the shared tensor twice
        tensors["lm_head.weight"] = tensors["model.embeddings.weight"]
    model.load_state_dict(tensors, strict=True)
    print(f"state_dict: {len(tensors)} tensors, all by name and shape")
    loaded = RetNetForCausalLM.from_pretrained(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    print("from_pretrained: the same numbers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        use_formulas(loaded)
    expected = load_file(folder / "logits.safetensors")
    with torch.inference_mode():
        logits = loaded.to(device).eval()(expected["tokens"].long().to(device), use_cache=False).logits.cpu()
    largest = expected["logits"].abs().max()
    difference = float((logits - expected["logits"]).abs().max() / largest)
    print(f"logits on {device}: differ from heddle's by {difference:.2e} of the largest, {largest:.4g}")
    sys.exit(0 if difference <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
