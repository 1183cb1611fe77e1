"""Run: claims trials, starts a worker for each in a free slot, and writes what the attempt folders say."""
