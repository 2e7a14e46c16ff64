"""SPANER."""
