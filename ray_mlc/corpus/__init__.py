"""From files to units to rows: what there is to score, and reading it."""
