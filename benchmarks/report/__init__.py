"""Tables in README.md and docs/ and plots from benchmarks/results/: `python -m benchmarks.report`.

A table stands between `<!-- name -->` and `<!-- /name -->`. `--check` writes nothing and fails where a
document, a plot and the JSONs disagree.
"""

from __future__ import annotations

import re
import sys
from functools import partial

from benchmarks.report import growth, plots, savings, systems
from benchmarks.report.markdown import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"
TABLES = {
    "saves": (README, partial(savings.overview, "cpu", ("gpt2", "llama", "bert", "vit"))),
    "cpu": (README, growth.cpu),
    "select": (README, growth.select),
    "gpu": (README, systems.gpu),
    "checkpoint": (README, systems.checkpoint),
    "host": (DOCS / "kernels.md", systems.host),
    "peers": (DOCS / "benchmarks.md", growth.peers),
    "scaling": (DOCS / "benchmarks.md", growth.scaling),
    "savings": (DOCS / "savings.md", partial(savings.overview, "cpu")),
    "savings-gpt2": (DOCS / "savings.md", partial(savings.details, "cpu", "gpt2")),
    "savings-llama": (DOCS / "savings.md", partial(savings.details, "cpu", "llama")),
    "savings-tried": (DOCS / "savings.md", partial(savings.details, "tried", "llama, tried")),
    "savings-gpu": (DOCS / "savings.md", partial(savings.overview, "gpu")),
    "sharded": (DOCS / "distributed.md", systems.sharded),
    "learning-memory": (DOCS / "memory.md", systems.learning_memory),
    "optimizer-state": (DOCS / "optimizer-state.md", savings.moments),
}


def fill(name: str, text: str, content: str) -> str:
    """The document with a table put into its place."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"there is no place for the table {name}")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def main() -> None:
    """Fill every table, or check it."""
    for name, (path, make) in TABLES.items():
        text = path.read_text()
        new = fill(name, text, make())
        if "--check" not in sys.argv[1:]:
            path.write_text(new)
        elif new != text:
            sys.exit(f"{path.name}: the table {name} is not what the JSON says: make report")
    for path, plot in plots.PLOTS.items():
        if plot.is_current(path):
            continue
        if "--check" in sys.argv[1:]:
            sys.exit(f"{path.name} is not what the JSON says: make report")
        plot.save(path)
