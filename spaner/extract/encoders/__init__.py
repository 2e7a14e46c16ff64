"""One file per frozen encoder, and what every encoder offers."""
