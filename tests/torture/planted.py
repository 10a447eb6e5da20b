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
        "    changes[#changes + 1], changes[#changes + 2] =",
        (
            "    state.values[1] = state.values[1] - (state.position % 50 == 0 and 1 or 0)\n"
            "    changes[#changes + 1], changes[#changes + 2] ="
        ),
    ),
    "forgets records": (
        "  return refused or series.add(shard, fields)\n",
        "  if shard.issuing[1].position % 50 == 0 then return nil end\n  return refused or series.add(shard, fields)\n",
    ),
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
