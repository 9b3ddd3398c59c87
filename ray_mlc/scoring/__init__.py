"""From units to parts: batches, scores, output files, the run's ledger and its proof."""
