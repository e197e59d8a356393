"""`ligo-fast`, or `python -m ligo_fast`: the command line; `info` works without any extra package."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command that sys.argv names."""
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        if sys.argv[1:] == ["info"]:
            from .info import report

            print(report())
            return
        sys.exit(f"usage: ligo-fast info; all else needs {', '.join(missing)}: pip install 'ligo-fast[cli]'")
    from .cli import run

    run()


if __name__ == "__main__":
    main()
