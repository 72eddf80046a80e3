"""Makes a checkpoint robust: methods (one file each) and the trainer that runs them all."""
