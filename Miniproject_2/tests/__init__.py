"""Tests of Miniproject_2: `python -m pytest Miniproject_2/tests` from the root of the repository."""
