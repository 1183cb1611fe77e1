"""Numbers in, numbers out: contrasts of means, corrections, replication, power, shares, and digits to print."""
