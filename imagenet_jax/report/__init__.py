"""Reports on runs as an HTML page, figures and Markdown."""
