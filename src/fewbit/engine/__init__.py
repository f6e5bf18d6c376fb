"""From a recipe to a quantized model: recipe, plan, run, report."""
