"""Use what was trained: embed new samples with a run, index them, search them, look at them, share them."""
