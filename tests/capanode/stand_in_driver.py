"""A stand-in for NVIDIA's driver: a shared library with the few functions that start CUDA, written
byte by byte, so that no compiler is needed; and a host's files as a driver leaves them.
"""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_PAGE = 0x1000
_FUNCTIONS = (
    *("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAlloc_v2"),
)


def driver_library(code: int) -> bytes:
    """An ELF library for x86-64 whose functions all return `code`."""
    names = b"\0" + b"\0".join(name.encode() for name in _FUNCTIONS) + b"\0libcuda.so.1\0"
    function = b"\xb8" + struct.pack("<I", code) + b"\xc3"  # mov eax, code; ret
    code_at = _HEADER.size + 2 * _SEGMENT.size
    names_at = code_at + 16
    symbols_at = names_at + len(names) + -len(names) % 8
    count = len(_FUNCTIONS) + 1
    # One bucket, which holds a chain of all symbols.
    table = struct.pack(f"<{3 + count}I", 1, count, 1, 0, *range(2, count), 0)
    symbols = _SYMBOL.pack(0, 0, 0, 0, 0, 0)
    for name in _FUNCTIONS:
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        symbols += _SYMBOL.pack(place, 0x12, 0, 1, code_at, len(function))
    table_at = symbols_at + len(symbols)
    dynamic_at = table_at + len(table) + -len(table) % 8
    entries = ((4, table_at), (5, names_at), (6, symbols_at), (10, len(names)), (11, _SYMBOL.size))
    soname = (14, names.index(b"libcuda"))
    dynamic = b"".join(_DYNAMIC.pack(*pair) for pair in (*entries, soname, (0, 0)))
    size = dynamic_at + len(dynamic)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = (3, 62, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 2, 0, 0, 0)
    load = _SEGMENT.pack(1, 7, 0, 0, 0, size, size, _PAGE)
    links = _SEGMENT.pack(2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    parts = {
        0: _HEADER.pack(identity, *header) + load + links,
        code_at: function,
        names_at: names,
        symbols_at: symbols,
        table_at: table,
        dynamic_at: dynamic,
    }
    content = bytearray(size)
    for at, part in parts.items():
        content[at : at + len(part)] = part
    return bytes(content)


@contextmanager
def installed_driver(code: int) -> Iterator[Path]:
    """A folder that holds the driver's library, readable for all, and not below /tmp, where a
    worker has its scratch folder."""
    with tempfile.TemporaryDirectory(prefix="capanode-driver-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = folder / "libcuda.so.580.1"
        library.write_bytes(driver_library(code))
        library.chmod(0o755)
        (folder / "libcuda.so.1").symlink_to(library.name)
        yield folder


def host_with_cards(root: Path, *, cards: int, driver_at: str) -> Path:
    """A host's files: a driver below `driver_at`, and cards on the bus, each with its sound."""
    folder = root / driver_at.lstrip("/")
    folder.mkdir(parents=True)
    for name in ("libcuda.so.1", "libnvidia-ptxjitcompiler.so.1", "libsomething-else.so.1"):
        (folder / name).write_text(name)
    devices = root / "dev"
    (devices / "nvidia-caps").mkdir(parents=True)
    names = ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(cards))]
    for name in (*names, "nvidia-caps/nvidia-cap1", "nvidia-caps/nvidia-cap21", "sda"):
        (devices / name).write_text("")
    listed = root / "sys/bus/pci/devices"
    listed.mkdir(parents=True)
    for number in range(cards):
        for function in (0, 1):
            address = f"0000:{number + 1:02x}:00.{function}"
            real = root / "sys/devices/pci0000:00" / address
            real.mkdir(parents=True)
            (listed / address).symlink_to(real)
    (root / "sys/devices/system/node").mkdir(parents=True)
    (root / "proc/driver/nvidia").mkdir(parents=True)
    return root
