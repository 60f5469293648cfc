"""The HTML report on one or more runs."""
