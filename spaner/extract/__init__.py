"""Stage 1: files in, sealed cache out."""
