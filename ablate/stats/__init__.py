"""Numbers in, numbers out: means, paired t intervals, and how many digits they carry."""
