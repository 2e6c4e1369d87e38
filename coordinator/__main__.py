"""`python -m coordinator`, and what the `coordinator` command runs."""

from protocol.programs.entry import run_program


def main() -> None:
    run_program("coordinator.cli")


def buy() -> None:
    """The `capacloud` command."""
    run_program("coordinator.cli.capacloud")


if __name__ == "__main__":
    main()
