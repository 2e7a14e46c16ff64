"""One file per layout of data on disk, and what every reader returns."""
