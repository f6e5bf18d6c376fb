"""Pages and pictures for people: HTML, charts, galleries, grids."""
