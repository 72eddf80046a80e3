"""The loop and its parts: model, objective, training attack, validation, checkpoints."""
