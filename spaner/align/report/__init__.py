"""Runs and sweeps on one page: what is measured, what is said about it, and how it is drawn."""
