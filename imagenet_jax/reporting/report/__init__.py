"""The report on runs: one HTML page, PNGs and Markdown, drawn from plain values."""
