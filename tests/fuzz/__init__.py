"""Coverage-guided fuzzing of everything that reads what somebody else wrote. Run by hand; CI replays the corpus."""
