"""The run-time operations: one definition, and faster copies that give the same bits."""
