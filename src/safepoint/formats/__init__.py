"""Foreign formats: each is recognised by its content and read without its framework; nothing in a file is run."""

from safepoint.formats.contents import Contents
from safepoint.formats.recognise import is_known_file, is_known_folder, is_marked_folder, read

__all__ = ["Contents", "is_known_file", "is_known_folder", "is_marked_folder", "read"]
