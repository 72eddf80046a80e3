"""Pictures and pages made from results; they know nothing of models and attacks."""
