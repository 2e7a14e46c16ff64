"""The ESResNeXt-fbsp network under its short address, for notebooks that want the bare module."""

from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP as ESResNeXtFBSP
