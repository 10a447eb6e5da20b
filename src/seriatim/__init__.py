"""Seriatim hands out gap-free, sequential document numbers and proves that none was lost, repeated or altered."""

__version__ = "0.1.0"
