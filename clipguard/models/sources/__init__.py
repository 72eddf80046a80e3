"""From a model's name to the files that it stands for."""
