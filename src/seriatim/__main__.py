"""`python -m seriatim`."""

from seriatim.cli import main

main()
