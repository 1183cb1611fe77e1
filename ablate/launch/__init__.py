"""Launchers: what starts agents on other machines. All that agents share is the store; it alone knows how they do."""
