"""Asking a run to stop: signals collected instead of dying, so that it can save first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """Collects the name of SIGTERM or SIGINT instead of dying; a second Ctrl-C interrupts at once."""
    request: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: Any) -> None:
        del frame
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.append(signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
