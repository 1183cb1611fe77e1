"""Renderings of findings: terminal, Markdown, CSV, JSON. Nothing is computed here, and nothing is read from a store."""
