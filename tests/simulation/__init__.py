"""Deterministic simulation of the whole orchestrator.

The production engine, store and proposer run in a seeded world, in virtual time, against every fault of the menu; the
invariants are looked at after every tick. One seed is one story: the same seed tells it again, to the last event.

    python -m tests.simulation --seeds 1000
"""
