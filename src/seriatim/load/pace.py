"""When requests are due, and a clock that wakes an event loop in time."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from typing import Protocol

SECOND_NS = 1_000_000_000
FINEST_S = 0.00025
"""Waking up more often than this costs more than it tells."""


class Arrivals(Protocol):
    """When requests are due."""

    def next(self, now_ns: int) -> int | None:
        """Takes the next request that is due by now: returns since when, None when there is none."""

    def over(self, now_ns: int) -> bool:
        """Whether there will be none any more."""

    def left(self) -> int:
        """How many were due and not taken."""


class Closed:
    """A request is due as soon as a connection is free."""

    def __init__(self, start_ns: int, end_ns: int | None, count: int | None) -> None:
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._count = count
        self._taken = 0

    def next(self, now_ns: int) -> int | None:
        """Takes the next request, from now on."""
        if now_ns < self._start_ns or self.over(now_ns):
            return None
        self._taken += 1
        return now_ns

    def over(self, now_ns: int) -> bool:
        """Whether time or number are reached."""
        return (self._end_ns is not None and now_ns >= self._end_ns) or self._taken == self._count

    def left(self) -> int:
        """None can be left."""
        return 0


class Open:
    """Requests are due at their times, whether or not those before them are answered."""

    def __init__(self, start_ns: int, end_ns: int | None, count: int | None, rate: float) -> None:
        self._start_ns = start_ns
        self._interval_ns = SECOND_NS / rate
        fits = None if end_ns is None else max(0, int((end_ns - start_ns - 1) / self._interval_ns) + 1)
        self._count = min(one for one in (fits, count) if one is not None)
        self._taken = 0

    def next(self, now_ns: int) -> int | None:
        """Takes the next request whose time has come; it is due since then, however late it is taken."""
        due_ns = self._start_ns + int(self._taken * self._interval_ns)
        if due_ns > now_ns or self._taken >= self._count:
            return None
        self._taken += 1
        return due_ns

    def over(self, _now_ns: int) -> bool:
        """Whether all were taken: what is late is still to be sent."""
        return self._taken >= self._count

    def left(self) -> int:
        """How many were not taken."""
        return self._count - self._taken


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


class Ticker:
    """Calls back at an interval. The loop's own timers know whole milliseconds only: too coarse for a rate."""

    def __init__(self, interval_s: float, call: Callable[[], None]) -> None:
        self._call = call
        self._descriptor = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        interval = _Timespec(*divmod(int(max(interval_s, FINEST_S) * SECOND_NS), SECOND_NS))
        spec = _Itimerspec(interval, interval)
        if self._descriptor < 0 or _libc.timerfd_settime(self._descriptor, 0, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd")
        asyncio.get_running_loop().add_reader(self._descriptor, self._tick)

    def _tick(self) -> None:
        os.read(self._descriptor, 8)
        self._call()

    def close(self) -> None:
        """Stops."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
