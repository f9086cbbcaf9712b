"""What a person should read even if logging was never set up: one line on resume, one for what was passed over."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("safepoint")


def announce(message: str, *, warning: bool = False) -> None:
    """Log `message`; where no handler would show it, write it to stderr: a resumed run is never silent about it."""
    level = logging.WARNING if warning else logging.INFO
    logger.log(level, message)
    shown = logger.isEnabledFor(level) and (logger.hasHandlers() or (warning and logging.lastResort is not None))
    if not shown:
        sys.stderr.write(f"safepoint: {message}\n")
