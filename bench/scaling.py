#!/usr/bin/env python3
"""The arithmetic of data parallel training: memory, communication and efficiency for models and numbers of GPUs.

Prints the tables of docs/scaling.md. What is assumed stands at the top, and may be changed by arguments:

    python3 bench/scaling.py --nvlink 240e9 --network 40e9
"""
import argparse
import math

MODELS = (  # name, layers, width, parameters; a block has 12 width^2, vocabulary 50304, tied to nothing
    ("165 M", 12, 768, 165e6),
    ("417 M", 24, 1024, 417e6),
    ("1.4 B", 24, 2048, 1.41e9),
    ("7 B", 32, 4096, 6.9e9),
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=32768, help="a GPU and step")
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second of a GPU in bfloat16")
    parser.add_argument("--utilization", type=float, default=0.45, help="part of the peak that one GPU reaches alone")
    parser.add_argument("--memory", type=float, default=141e9, help="bytes of a GPU")
    parser.add_argument("--host", type=int, default=8, help="GPUs of a host")
    parser.add_argument("--nvlink", type=float, default=240e9, help="bytes a second of a reduce-scatter within a host")
    parser.add_argument("--network", type=float, default=240e9, help="the same between hosts with a card for each GPU")
    parser.add_argument("--nvlink-latency", type=float, default=2e-6, help="seconds from one GPU to the next in a host")
    parser.add_argument("--network-latency", type=float, default=8e-6, help="seconds from one host to the next")
    parser.add_argument("--activations", type=float, default=42.4, help="bytes a token, layer and unit of width")
    parser.add_argument("--recomputed", type=float, default=2.0, help="the same with model.recompute: block")
    parser.add_argument("--vocabulary", type=float, default=2 * 50304, help="bytes a token of the logits")
    parser.add_argument("--model", help="only this one, e.g. '165 M'")
    parser.add_argument("--gpus", default="1,8,64,1024")
    return parser.parse_args()


def state_bytes(parameters, gpus):
    """Compute copy 2, master 4, gradient 4; the two moments, 8, are shared out."""
    return parameters * (10 + 8 / gpus)


def ring_seconds(bytes_, gpus, calls, given):
    """A reduce-scatter or an all-gather by a ring through all GPUs, in so many calls."""
    if gpus == 1:
        return 0.0
    hosts = max(1, gpus // given.host)
    bandwidth = given.nvlink if hosts == 1 else min(given.nvlink, given.network)
    hops = (gpus - 1) * given.nvlink_latency if hosts == 1 else (
        (gpus - hosts) * given.nvlink_latency + hosts * given.network_latency)
    return bytes_ * (gpus - 1) / gpus / bandwidth + calls * hops


def fits(bytes_, given):
    return f"{bytes_ / 1e9:.0f}" + ("" if bytes_ <= given.memory else " (too much)")


def buckets(parameters):
    """An eighth of the gradients, from 1 MiB to 32 MiB (trainers/parallel/gradient_reduction.h)."""
    return math.ceil(4 * parameters / min(max(parameters / 2, 2**20), 2**25))


def row(model, gpus, given):
    name, layers, width, parameters = model
    compute = 6 * parameters * given.tokens / (given.peak * given.utilization)
    reduce = ring_seconds(4 * parameters, gpus, buckets(parameters), given)  # float32 gradients
    gather = ring_seconds(2 * parameters, gpus, 1, given)  # bfloat16 values
    hidden = min(reduce, compute * 2 / 3)  # beside the backward pass
    step = compute + reduce - hidden + gather
    states = state_bytes(parameters, gpus)
    block, logits = given.activations * given.tokens * width, given.vocabulary * given.tokens
    kept = states + layers * block + logits
    recomputed = states + max(block, logits) + given.recomputed * given.tokens * layers * width
    return (f"| {name} | {gpus} | {states / 1e9:.1f} | {fits(kept, given)} | {fits(recomputed, given)} | {6 * parameters * (gpus - 1) / gpus / 1e9:.2f} | "
            f"{compute * 1e3:.0f} | {reduce * 1e3:.1f} + {gather * 1e3:.1f} | {compute / step:.2f} | "
            f"{given.tokens * gpus / 1e6:.2f} M | {gpus * given.tokens / step / 1e6:.2f} M |")


def main():
    given = arguments()
    print("| parameters | GPUs | states, GB | + activations, GB | recomputed, GB | moved a step, GB | compute, ms | reduce + gather, ms | "
          "efficiency | tokens a step | tokens a second |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for gpus in map(int, given.gpus.split(",")):
            if given.model in (None, model[0]):
                print(row(model, gpus, given))


if __name__ == "__main__":
    main()
