"""A transformer distilled into a smaller one, with `lucid` alone; ``python -m lucid.examples.distill_transformer``."""
