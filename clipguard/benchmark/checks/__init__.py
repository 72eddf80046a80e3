"""Sanity checks of a bench run: probes, findings, diagnosis."""
