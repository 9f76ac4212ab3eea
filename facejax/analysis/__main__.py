"""`python -m facejax.analysis` is the command `facejax`."""

from facejax.analysis.main import program

program()
