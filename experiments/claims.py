"""Measures a paper's claim: `python -m experiments.claims NAME`."""

from facejax.train.claims import main

if __name__ == "__main__":
    main()
