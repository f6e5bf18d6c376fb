"""fewbit as one of diffusers' own quantizers."""
