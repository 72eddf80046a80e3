"""Pictures and pages made from results; none of them loads a model or attacks (`adversarial/replay.py` does)."""
