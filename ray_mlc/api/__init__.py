"""What `from ray_mlc import …` gives: the commands and the classifier, for notebooks and programs."""
