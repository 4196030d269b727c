"""The Go programs of all suites, for whoever builds everything."""

from .suites import load_all

PROGRAMS = tuple(program for suite in load_all() for program in suite.programs)
