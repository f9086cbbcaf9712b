"""`python -m safepoint.cli`."""

from safepoint.cli import main

main()
