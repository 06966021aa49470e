"""Odd, damaged and hostile files.

Each area is a module with `write(generator, folder) -> (kind, target)`, which makes one input, and `readers(home)`, which returns
the commands that read such a file, by name. All readers get `target` and return something comparable.
"""

AREAS = {"checkpoints": 4, "images": 5, "masks": 3, "pickles": 2, "records": 4, "tables": 2}
"""The areas, with their shares of the inputs."""
SELF_CHECK = "faults"
"""An area that commits every fault, to check that each is noticed."""
UNEQUAL = ("records", "tables")
"""Areas whose readers accept different files, so that one may reject what another reads."""
CANARY = "executed"
"""Name of a file in the working directory that an input creates if its code runs."""
