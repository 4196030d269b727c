"""Faults, one after another, on real processes; after each of them what must hold is looked at."""
