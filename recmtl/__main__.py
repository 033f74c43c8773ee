"""`python -m recmtl` is `recmtl`."""

from recmtl.cli import main

if __name__ == "__main__":  # workers of `recmtl serve` import this module by another name
    main()
