"""Everything that calls a diffusers pipeline: opening, asking, generating."""
