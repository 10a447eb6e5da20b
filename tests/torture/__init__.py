"""Torture: real stacks under load lose processes, wires, disks and data, and must not lose or repeat a number.

link       a wire between two processes, which can be cut, slowed, silenced
services   what is tortured: `seriatim up`, or its processes apart with PostgreSQL behind links
load       `seriatim load` beside it, whose audit at the end is the verdict
faults     what passes by itself: allocation must go on
halts      what must stop allocation until somebody recovers it
journal    what was done and found, line by line
rounds     all of it, one after the other

Each imports only what stands above it. `python -m torture --help` says how to run it.
"""
