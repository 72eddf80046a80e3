"""Pictures and pages made from results; none of them loads a model or attacks (`benchmark/again.py` does)."""
