"""The trained classifier: its folder, tokenizer, decision and engines."""
