"""Complete programs that use lucid the way a reader would."""
