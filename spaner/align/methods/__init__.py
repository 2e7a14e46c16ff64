"""One file per method, and the seam they share."""
