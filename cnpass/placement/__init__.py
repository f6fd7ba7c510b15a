"""Placement: which analog node gets a compensation, and how wide."""
