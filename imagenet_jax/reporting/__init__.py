"""Reporting: where metrics are written."""
