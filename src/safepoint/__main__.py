"""`python -m safepoint`."""

from safepoint.cli import main

main()
