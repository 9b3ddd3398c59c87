"""Clusters: one typed config, and the manifests and scripts that follow from it."""
