"""The system's C compiler, for a program that compiles kernels while it starts (Triton does).

Found by name where distributions put it; without one, nothing is shown.
"""

from pathlib import Path

from capanode.sandbox.view import Mount

SEARCH_PATH = "/usr/bin"

_PROGRAMS = ("cc", "gcc", "as", "ld")
_FOLDERS = ("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/include")


def toolchain(host: Path = Path("/")) -> tuple[Mount, ...]:
    """What the compiler is made of, where it looks for itself. `host` is for tests."""
    found = []
    for path in (*(f"{SEARCH_PATH}/{name}" for name in _PROGRAMS), *_FOLDERS):
        real = host / path.lstrip("/")
        if real.exists():
            found.append(Mount(str(real.resolve()), path))
    return tuple(found)
