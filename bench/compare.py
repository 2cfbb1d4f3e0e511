#!/usr/bin/env python3
"""Joins rows of `heddle bench --json` and of bench/peers/benchmark.py into one table.

    python3 bench/compare.py heddle.json peers.json [--markdown]

One line a row of heddle: its value, the fastest (smallest) peer, and heddle over peer: below 1 heddle is better. Only
rows measured in the same run on the same machine should be compared.
"""

import argparse
import json


def key(row):
    return row["suite"], row["config"], row["pass"], row["quantity"], row["n"], row["dtype"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heddle")
    parser.add_argument("peers", nargs="+")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.heddle) as file:
        ours = json.load(file)
    theirs = {}
    for path in arguments.peers:
        with open(path) as file:
            for row in json.load(file):
                theirs.setdefault(key(row), []).append((row["value"], row["provider"]))
    header = ["suite", "config", "pass", "what", "n", "heddle", "copy", "best peer", "", "ratio"]
    lines, worst = [], None
    for row in ours:
        peers = sorted(theirs.get(key(row), []))
        line = [row["suite"], row["config"], row["pass"], row["quantity"], str(row["n"]),
                "%.4f %s" % (row["value"], row["unit"]),
                "%.3f" % row["copy_fraction"] if row["copy_fraction"] else ""]
        if peers:
            ratio = row["value"] / peers[0][0]
            line += ["%.4f" % peers[0][0], peers[0][1], "%.3f" % ratio]
            if worst is None or ratio > worst[0]:
                worst = (ratio, line)
        else:
            line += ["", "", ""]
        lines.append(line)
    widths = [max(len(line[i]) for line in lines + [header]) for i in range(len(header))]
    separator = " | " if arguments.markdown else "  "
    edge = "| " if arguments.markdown else ""
    print(edge + separator.join(h.ljust(w) for h, w in zip(header, widths)))
    if arguments.markdown:
        print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for line in lines:
        print(edge + separator.join(cell.ljust(w) for cell, w in zip(line, widths)))
    if worst:
        print("largest ratio: %.3f (%s)" % (worst[0], " ".join(worst[1][:5])))


if __name__ == "__main__":
    main()
