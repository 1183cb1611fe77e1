"""Facts to findings: effects are computed afresh from the store each time, and nothing here prints."""
