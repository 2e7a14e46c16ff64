"""Stage 2: sealed caches in, numbers out."""
