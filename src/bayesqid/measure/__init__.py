"""The only torch: quantize, run and score language models."""
