"""`python -m capanode`, and what the `capanode` command runs."""

from protocol.programs.entry import run_program


def main() -> None:
    run_program("capanode.cli")


if __name__ == "__main__":
    main()
