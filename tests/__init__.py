"""A package so that `python -m tests.simulation` finds the simulation; the other folders stand on their own."""
