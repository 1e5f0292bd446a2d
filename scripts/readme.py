"""Bring the README's table of methods up to date: `xaibench list methods --markdown` between its two markers.

python scripts/readme.py
"""

import contextlib
import io
from pathlib import Path

from xaibench.cli import main

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- methods: made by scripts/readme.py -->\n", "<!-- /methods -->\n"


def updated(text: str) -> str:
    """The README with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    with contextlib.redirect_stdout(io.StringIO()) as table:
        main(["list", "methods", "--markdown"])
    return f"{before}{BEGIN}{table.getvalue()}{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
