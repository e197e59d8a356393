"""What goes beside the weights: config.json, growth.json (how they came about) and a model card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

import torch

from ..models.layer_types import grown_types, layer_types
from ..operator import GrowthOperator


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def with_layer_types(config: dict[str, Any], op: GrowthOperator, small: int) -> dict[str, Any]:
    """The config with a type for every target layer: that of the source layer it is made of.

    Raises:
        GrowthError: where source layers of several types are mixed into one, or new ones drawn.
    """
    types = layer_types(config)
    if types is None or len(types) != small:
        return config
    growth = op.growth
    return {**config, "layer_types": grown_types(types, growth.depth.values(), growth.axes["layer"].large)}


def growth_record(op: GrowthOperator, version: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of growth.json."""
    growth = op.growth
    axes = {name: [a.small, a.large] for name, a in growth.axes.items() if not a.factors}
    return {
        "method": growth.method,
        "seed": op.seed,
        "options": op.options,
        "noise": growth.noise,
        "architecture": growth.architecture.name,
        "axes": axes,
        **facts,
        "versions": {"ligo_fast": version, "torch": torch.__version__, "python": platform.python_version()},
    }


def model_card(record: Mapping[str, Any], learned: bool) -> bytes:
    """README.md of the grown folder."""
    source = record["source"]
    rows = [f"| {axis} | {a} | {b} |" for axis, (a, b) in record["axes"].items() if a != b]
    parameters = record["parameters"]
    how = "learned factors" if learned else "fixed maps"
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- model-growth",
        "---",
        "",
        f"# {source['name']}, grown",
        "",
        f"These weights were grown from `{source['name']}` with ligo_fast, method `{record['method']}` "
        f"({how}, seed {record['seed']}), and have not been trained since.",
        "",
        "| axis | before | now |",
        "|---|---:|---:|",
        *rows,
        f"| parameters | {parameters[0]:,} | {parameters[1]:,} |",
        "",
        "`growth.json` has the hashes of the source and of the maps, the options and the versions. The "
        "licence and the limits of the source apply.",
        "",
    ]
    return "\n".join(lines).encode()
