"""How useful a picture of a face is to recognition."""
