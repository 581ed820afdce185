"""A page of condensed sets: one HTML file that shows their images, scores and recipes, and asks for nothing outside."""
