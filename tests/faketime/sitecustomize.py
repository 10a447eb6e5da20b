"""What Python needs to sleep under a faked clock; it imports this by itself when it starts.

time.sleep gives the kernel a deadline by the monotonic clock. libfaketime (0.9.10) takes it for one by the faked clock
even where it leaves the monotonic one alone, and the call fails with EINVAL. select takes a span of time.
"""

from __future__ import annotations

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep
