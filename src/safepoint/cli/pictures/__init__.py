"""Pictures of a run or of files: the numbers of each kind, how they are drawn, and the files that they become.

Invariant: numbers come without matplotlib; text from files is drawn as it is, never as markup.
"""
