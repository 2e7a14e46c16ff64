"""A local page to search an index with: loopback only, nothing from the network, nothing written."""
