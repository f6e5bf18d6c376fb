"""How the shipped demos were made, and a show of what few bits do to them."""
