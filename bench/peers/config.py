"""Reads heddle's training configs."""

from pathlib import Path

import yaml


def load_config(path: Path) -> dict:
    """The config with its chain of `base:` files, merged key by key."""
    config = yaml.safe_load(Path(path).read_text())
    base = config.pop("base", None)
    return merge(load_config(Path(path).parent / base), config) if base else config


def merge(base: dict, over: dict) -> dict:
    """`over` wins; a map whose `type` is another one replaces that of the base whole."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            if value.get("type", below.get("type")) == below.get("type"):
                value = merge(below, value)
        merged[key] = value
    return merged
