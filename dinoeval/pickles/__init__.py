"""Read pickles as data: an interpreter of the pickle language that builds plain values and calls nothing that a file names.

A pickle is a program. Python's own readers run it: they import what it names, hash what it nests and allocate what it
declares. This one knows a fixed table of names, each with a function of dinoeval that checks its arguments, and counts
what the program builds, so that no file takes more memory, time or stack than its size justifies.
"""

from dinoeval.pickles.program import BoundedFile, Vocabulary, load_data
from dinoeval.pickles.values import Call, NotData, PickleError

__all__ = ["BoundedFile", "Call", "NotData", "PickleError", "Vocabulary", "load_data"]
