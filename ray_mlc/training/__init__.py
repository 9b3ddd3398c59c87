"""From examples to a fine-tuned encoder, and the baselines that it has to beat."""
