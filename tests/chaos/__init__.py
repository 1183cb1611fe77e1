"""The random-kill proof: runners, workers and servers die at random moments, and a study ends as if none had."""
