"""What `from ray_mlc import …` gives: commands and classifier, for notebooks and programs."""
