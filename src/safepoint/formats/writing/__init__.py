"""Writing strangers' formats, each by its specification: no framework is needed, and none of them is run."""

from safepoint.formats.writing.content import Content, Outgoing
from safepoint.formats.writing.targets import TARGETS, Target, check_room, target_of, write

__all__ = ["TARGETS", "Content", "Outgoing", "Target", "check_room", "target_of", "write"]
