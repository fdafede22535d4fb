"""Stored results as plotly figures, one figure per file."""
