"""Everything that only a GPU shows, in one command of ten minutes: ``python -m perf.gpu``, or ``make gpu``.

The command itself needs Python alone: it runs steps in processes of their own. `bundle` makes, beforehand, what a
machine without a network lacks.
"""
