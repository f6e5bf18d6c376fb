"""Files of other runtimes: one module for each dialect, and what brings them into a model."""
