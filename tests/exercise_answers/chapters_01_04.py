"""Answers to the exercises of chapters 1 to 4, for tests/test_exercise_checks.py."""

ANSWERS = []
