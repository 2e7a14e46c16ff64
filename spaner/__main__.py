"""`python -m spaner` is the command `spaner`."""

from spaner.cli import main

main()
