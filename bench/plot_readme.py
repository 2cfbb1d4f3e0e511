#!/usr/bin/env python3
"""Draws docs/picture.svg, heddle beside its peers, from the rows of bench/reference. Needs matplotlib.

    bench/plot_readme.py [--out FILE]          .svg or .png

Each bar is a time or a memory divided by heddle's, so 1 is heddle and shorter is better; the number at its end is what was
measured. Times are compared on the same kind of card only; memory is counted in bytes, which no card changes. Times marked *
were not measured in the same command as heddle's. Two calls write the same file.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "bench/reference"
COLORS = {"heddle": "#1b6ca8", "PyTorch": "#e0883b", "PyTorch, eager": "#b9b9b9", "Triton (xopes)": "#7a9e5b",
          "Triton (Liger)": "#a8679b", "Triton (fla)": "#c9b037"}
# The names in the files. PyTorch is torch.compile or, where that is faster, torch.nn.functional.
PROVIDERS = {"heddle": "heddle", "pytorch": "PyTorch", "torch_compile": "PyTorch",
             "torch": "PyTorch, eager", "triton": "Triton (xopes)", "fla": "Triton (fla)",
             "tr": "Triton (xopes)", "Tri": "Triton (xopes)", "liger": "Triton (Liger)", "fla_lightning": "Triton (fla)"}
# peers_h200.csv: (table, config) there, and (suite, config) here.
PEERS = {("srms", "residual_False"): ("srms_norm", "plain"), ("gate", "post"): ("norm_gate", "gate_post"),
         ("trinix_ln", "1x131072x16384"): ("layer_norm", "1x131072x16384"),
         ("rotate", "none_None"): ("lrpe_rotate", "none"), ("rotate", "silu_None"): ("lrpe_rotate", "silu"),
         ("cosine", "1d_l0"): ("lrpe_cosine", "1d_l0"), ("cosine", "3d_l0"): ("lrpe_cosine", "3d_l0"),
         ("attn", "b4h32d128"): ("linear_attention", "b4h32d128")}
# A panel: title, pass, quantity, card, and its bars as (label, suite, config, n).
NORMS = [("simple RMS norm", "srms_norm", "plain", 32768),
         ("+ residual, r returned", "srms_norm", "residual_returned", 32768),
         ("RMS norm, gate", "norm_gate", "gate_post", 32768), ("layer norm", "layer_norm", "1x131072x16384", 131072)]
POSITIONS = [("rotate", "lrpe_rotate", "none", 32768), ("rotate, silu", "lrpe_rotate", "silu", 32768),
             ("cosine", "lrpe_cosine", "1d_l0", 32768), ("cosine, 3 axes", "lrpe_cosine", "3d_l0", 32)]
ATTENTION = [("4 x 8192 tokens,\n32 heads of 128", "linear_attention", "b4h32d128", 8192)]
TRAINING = [("3.5 M, H200", "training", "3.5M", 16384, "H200"), ("165 M, H200", "training", "165M", 32768, "H200")]
PANELS = [
    [("Norms: forward, H200", "fwd", "speed", "H200", NORMS),
     ("backward, H200", "bwd_first", "speed", "H200", NORMS),
     ("peak memory of backward", "bwd", "memory", "any",
      [("simple RMS norm", "srms_norm", "plain", 8192), ("+ residual", "srms_norm", "residual", 8192),
       ("RMS norm, gate", "norm_gate", "gate_post", 8192)])],
    [("Position encodings: forward, H200", "fwd", "speed", "H200", POSITIONS),
     ("backward, H200", "bwd_first", "speed", "H200", POSITIONS),
     ("peak memory of backward", "bwd", "memory", "any",
      [("rotate", "lrpe_rotate", "none", 4096), ("rotate, softmax", "lrpe_rotate", "softmax_feature", 4096),
       ("cosine", "lrpe_cosine", "1d_l0", 4096)])],
    [("Linear attention: forward, H200", "fwd", "speed", "H200", ATTENTION),
     ("backward, H200", "bwd_first", "speed", "H200", ATTENTION),
     ("peak memory of backward", "bwd", "memory", "any",
      [("4 x 1024 tokens,\n32 heads of 128", "linear_attention", "b4h32d128", 1024)])],
    [("Training step: forward, backward and AdamW", "step", "speed", None, TRAINING), None,
     ("peak memory", "step", "memory", "H200", [("165 M, H200", "training", "165M", 32768)])],
]


def read_rows():
    """{(card, suite, config, pass, quantity, n): {provider: (value, the command it was measured in)}}"""
    rows = {}

    def put(card, suite, config, which, quantity, n, provider, value, run):
        if provider in PROVIDERS:
            key = card, suite, config, which, quantity, int(n)
            rows.setdefault(key, {}).setdefault(PROVIDERS[provider], (float(value), run))

    def read(name):
        with open(REFERENCE / name, newline="") as file:
            yield from csv.DictReader(file)

    for row in read("heddle.csv"):
        put(row["gpu"], row["suite"], row["config"], row["pass"], row["quantity"], row["n"], row["provider"],
            row["value"], row["run"])
    for row in read("published_tables.csv"):
        card = "any" if row["quantity"] == "memory" else row["gpu"]
        put(card, row["suite"], row["config"], row["pass"], row["quantity"], row["n"], row["provider"],
            row["value"], "published")
    passes = {"fwd": "fwd", "bwd": "bwd", "bwd_nograd": "bwd_first"}
    for row in read("peers_h200.csv"):
        place = PEERS.get((row["table"], row["config"]))
        if place:
            put("H200", *place, passes[row["pass"]], "speed", row["n"], row["provider"], row["ms"], "peers")
            if row["mib"] and row["pass"] != "bwd_nograd":
                put("any", *place, row["pass"], "memory", row["n"], row["provider"], row["mib"], "peers")
    return rows


def format_value(value, quantity):
    if quantity == "memory":
        return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"
    return f"{value:#.3g}".rstrip(".") + " ms"


def draw(axes, rows, title, which, quantity, card, bars):
    place, labels, largest = 0.0, [], 1.0
    for label, suite, config, n, *own_card in bars:
        found = rows[(own_card[0] if own_card else card), suite, config, which, quantity, n]
        (ours, our_run), first = found["heddle"], place
        for provider in (name for name in COLORS if name in found):
            if provider == "PyTorch, eager" and suite != "training":
                continue
            value, run = found[provider]
            name = format_value(value, quantity) + ("*" if run != our_run and quantity == "speed" else "")
            axes.barh(place, value / ours, height=0.82, color=COLORS[provider])
            axes.text(value / ours, place, " " + name, va="center", fontsize=7.5)
            largest, place = max(largest, value / ours), place + 1
        labels.append(((first + place - 1) / 2, label))
        place += 0.6
    axes.set_yticks([y for y, _ in labels], [label for _, label in labels], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.28)
    axes.axvline(1, color="#333333", linewidth=0.6)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=9.5, loc="left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/picture.svg")
    out = parser.parse_args().out
    plt.rcParams.update({"svg.hashsalt": "heddle", "svg.fonttype": "path", "font.family": "DejaVu Sans"})
    rows = read_rows()
    figure = plt.figure(figsize=(12, 11), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(len(PANELS), 3, height_ratios=[14, 14, 5, 7])
    for line, panels in enumerate(PANELS):
        for column, panel in enumerate(panels):
            if panel is None:
                continue
            wide = column + 1 < len(panels) and panels[column + 1] is None
            draw(figure.add_subplot(grid[line, column:column + 2] if wide else grid[line, column]), rows, *panel)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(handles, COLORS, loc="outside upper center", ncols=len(COLORS), frameon=False, fontsize=9)
    figure.supxlabel("Time or memory over heddle's: shorter is better.   * same kind of card, another run.   "
                     "PyTorch: compiled; its training steps use fla for linear attention.", fontsize=8.5)
    if out.suffix == ".svg":
        figure.savefig(out, metadata={"Date": None})
    else:
        figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
