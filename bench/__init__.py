"""Measurements of the budgets in the design: `make bench`. Nothing here is a test."""
