"""A `seriatim` with a fault of its own, which a torture must find; the fault lives here, outside the product.

Usage: planted.py NAME seriatim ARGUMENTS
"""

from __future__ import annotations

import hashlib
import sys

from seriatim import scripts
from seriatim.cli import main
from seriatim.scripts import Script

PLANTS = {
    "forgets ids": ("  if value then\n", "  if value and string.byte(id) % 3 > 0 then\n"),
    "repeats numbers": (
        "[#changes + 2] = field, text(value)\n",
        "[#changes + 2] = field, text(value - (state.position % 50 == 0 and 1 or 0))\n",
    ),
    "forgets records": ("  append(state, heads)\n", "  if state.position % 50 > 0 then append(state, heads) end\n"),
}
"""What allocate.lua says, and what it says here."""


def plant(name: str) -> None:
    """Changes what every call of allocate.lua does."""
    said, says = PLANTS[name]
    whole = scripts.script("allocate").text
    assert whole.count(said) == 1, name
    text = whole.replace(said, says)
    changed = Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    sound = scripts.script
    scripts.script = lambda asked, standing=None: changed if asked == "allocate" else sound(asked, standing)  # type: ignore[assignment]


if __name__ == "__main__":
    plant(sys.argv[1])
    main(sys.argv[3:])
