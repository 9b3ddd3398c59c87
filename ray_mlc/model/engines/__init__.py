"""Ways to run the encoder, behind one protocol."""
