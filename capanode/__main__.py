"""`python -m capanode`: the same as the `capanode` command."""

from capanode.cli import main

if __name__ == "__main__":
    main()
