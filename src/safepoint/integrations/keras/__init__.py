"""`KerasCheckpoint`: one callback with which `fit` goes on where it was killed, within epochs too."""

from safepoint.integrations.keras.checkpoint import KerasCheckpoint

__all__ = ["KerasCheckpoint"]
