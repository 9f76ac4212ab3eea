"""`python -m facejax.analysis` is the command `facejax`."""

from facejax.analysis.main import program

if __name__ == "__main__":
    program()
