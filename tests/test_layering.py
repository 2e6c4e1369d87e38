"""The rules of the layout, read from the imports of every source file."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest

import protocol

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "protocol": {"protocol"},
    "contracts": {"contracts", "protocol"},
    "capanode": {"capanode", "protocol"},
    "coordinator": {"coordinator", "contracts", "protocol"},
    "sim": {"sim", "coordinator", "capanode", "contracts", "protocol"},
}

# What each room of the coordinator may import of the others. The modules beside the rooms compose
# them; of those, every room knows the errors.
ROOMS = {
    "buyer": set(),
    "market": set(),
    "ledger": set(),
    "db": {"ledger"},
    "leasing": {"market", "ledger", "db"},
    "settling": {"leasing", "ledger", "db"},
    "gateway": {"buyer"},
    "batches": {"buyer", "gateway", "db", "ledger"},
    "edge": {"buyer", "gateway", "batches", "db", "ledger", "buyer_config"},
    "in_process": {"buyer", "gateway", "market", "db", "app", "vault"},
}
COMMON = {"errors"}

# The node's trusted parent never imports torch; these run in the sandbox or in a converter.
TORCH_PLACES = ("capanode/engines/", "capanode/worker/main.py", "capanode/models/convert", "sim/")

# Pure modules get time and randomness as arguments.
BANNED_IN_PROTOCOL = {"time", "random", "secrets", "datetime", "socket", "threading", "asyncio"}

# The contracts' compiler and its EVM are for development; chains are the client's business alone.
COMPILER_PLACES = ("contracts/build.py",)
CHAIN_LIBRARIES = ("coincurve", "eth_abi", "rlp")

# Only these talk to a database.
SQL_PLACES = ("coordinator/db/",)


def source_files() -> list[Path]:
    return [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return frozenset(found)


def importers_of(root: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in source_files()
        if any(name.split(".")[0] == root for name in imported_modules(path))
    }


def test_there_are_files_to_check() -> None:
    assert len(source_files()) > 30


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_downwards(package: str) -> None:
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / package).rglob("*.py")
        for name in imported_modules(path)
        if name.split(".")[0] in ALLOWED and name.split(".")[0] not in ALLOWED[package]
    }
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    allowed = ROOMS[room] | COMMON | {room}
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "coordinator" / room).rglob("*.py")
        for name in imported_modules(path)
        if name.startswith("coordinator.") and name.split(".")[1] not in allowed
    }
    assert not wrong


GATEWAY = "coordinator/gateway"
# The gateway's bridge and its server join the two halves.
GATEWAY_JOINTS = {f"{GATEWAY}/bridge.py", f"{GATEWAY}/server.py"}


@pytest.mark.parametrize(
    ("half", "banned"),
    [
        ("http", {"trio"}),
        ("market_side", {"asyncio", "starlette", "uvicorn", "uvloop", "coordinator.gateway.http"}),
    ],
)
def test_the_halves_of_the_gateway_know_one_event_loop_each(half: str, banned: set[str]) -> None:
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / GATEWAY / half).rglob("*.py")
        for name in imported_modules(path)
        if any(name == root or name.startswith(f"{root}.") for root in banned)
    }
    assert not wrong


def test_only_the_joints_of_the_gateway_know_both_event_loops() -> None:
    both = importers_of("trio") & importers_of("asyncio")
    assert {path for path in both if path.startswith(GATEWAY)} == GATEWAY_JOINTS


def test_libp2p_is_imported_in_one_place() -> None:
    stray = {p for p in importers_of("libp2p") if not p.startswith("protocol/net/libp2p")}
    assert not stray


def test_torch_stays_out_of_the_trusted_parent() -> None:
    assert not {path for path in importers_of("torch") if not path.startswith(TORCH_PLACES)}


def test_only_the_query_modules_know_sqlalchemy() -> None:
    assert not {path for path in importers_of("sqlalchemy") if not path.startswith(SQL_PLACES)}


def test_contracts_run_without_their_compiler() -> None:
    assert importers_of("vyper") == set(COMPILER_PLACES)
    assert not importers_of("boa")


def test_nothing_that_runs_imports_what_raises_the_recursion_limit() -> None:
    """py_ecc does, for the whole process; deeply nested JSON then overflows the C stack."""
    assert not {root: found for root in ("eth_account", "py_ecc") if (found := importers_of(root))}


def test_chain_libraries_stay_in_contracts() -> None:
    found = {path for library in CHAIN_LIBRARIES for path in importers_of(library)}
    assert found
    assert not {path for path in found if not path.startswith("contracts/")}


def test_pure_protocol_modules_read_no_clock_and_no_randomness() -> None:
    wrong = {
        (path.name, name)
        for path in (ROOT / "protocol").glob("*.py")
        for name in imported_modules(path)
        if name.split(".")[0] in BANNED_IN_PROTOCOL
    }
    assert not wrong


def test_pure_protocol_modules_read_no_environment_and_no_entropy() -> None:
    wrong = {
        (path.name, node.attr)
        for path in (ROOT / "protocol").glob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "urandom")
    }
    assert not wrong


def test_what_both_sides_agree_on_knows_nothing_of_our_programs() -> None:
    """`protocol/programs` is the common room of our programs, and no part of the wire."""
    pure = [*(ROOT / "protocol").glob("*.py"), *(ROOT / "protocol/net").glob("*.py")]
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in pure
        for name in imported_modules(path)
        if name.startswith("protocol.programs")
    }
    assert not wrong


def test_no_module_unpickles_or_evaluates() -> None:
    banned = {"pickle", "marshal", "shelve", "dill"}
    assert not {root: found for root in banned if (found := importers_of(root))}


def test_the_generic_package_name_is_ours() -> None:
    assert Path(protocol.__file__ or "").parent == ROOT / "protocol"


def test_a_class_name_means_one_thing_in_the_whole_tree() -> None:
    counts = Counter(
        node.name
        for path in source_files()
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name for name, count in counts.items() if count > 1}


# Where a broad `except` may keep what it catches: the boundary of one thing that others outlive.
# Anywhere else it puts something away and raises again.
BOUNDARIES = {
    ("protocol/net/serve.py", "run"),  # one conversation
    ("protocol/net/serve.py", "opening"),  # one dial, or one new stream
    ("protocol/net/serve.py", "validate_safely"),  # one gossiped message
    ("coordinator/gateway/bridge.py", "_capture"),  # one call into trio
    ("coordinator/gateway/http/app.py", "_serve"),  # one request
    ("coordinator/gateway/http/kept/keeper.py", "_record"),  # one purchase
    ("coordinator/gateway/http/oip/websocket.py", "serve"),  # one stream
    (
        "capanode/engines/tokenizer.py",
        "load_tokenizer",
    ),  # one file; the library raises bare Exception
    # One model; the library raises whatever a config that makes no sense leads to.
    ("capanode/engines/transformers_lm.py", "_load_model"),
    ("capanode/engines/tensor_export.py", "__init__"),  # one program, of strangers' code
    ("capanode/models/peer_market.py", "_run_as_client"),  # one ask, raised again as its cause
    ("capanode/models/convert.py", "main"),  # one conversion, in a process of its own
    ("capanode/worker/main.py", "_take_in"),  # one job's input
    ("capanode/worker/main.py", "main"),  # one model's loading, and one step
    ("coordinator/gateway/grpc/service.py", "handle"),  # one call
    ("coordinator/gateway/grpc/service.py", "_model_stream_infer"),  # one call
    ("sim/mutants/child.py", "_run_seeds"),  # one world
    ("sim/siege/runner.py", "_make"),  # one attack
}
BROAD = {"Exception", "BaseException", "BaseExceptionGroup"}


def is_broad(node: ast.AST) -> TypeGuard[ast.ExceptHandler]:
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = ast.walk(node.type) if node.type is not None else ()
    return node.type is None or any(isinstance(n, ast.Name) and n.id in BROAD for n in caught)


def broad_handlers(node: ast.AST, name: str = "") -> Iterator[tuple[str, ast.ExceptHandler]]:
    """Each with the name of its function."""
    for child in ast.iter_child_nodes(node):
        if is_broad(child):
            yield name, child
        inner = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else name
        yield from broad_handlers(child, inner)


def test_a_broad_except_raises_again_or_is_a_boundary() -> None:
    keeping = {
        (str(path.relative_to(ROOT)), function)
        for path in source_files()
        for function, handler in broad_handlers(parsed(path))
        if not (isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None)
    }
    assert keeping == BOUNDARIES


def test_a_broad_except_says_why() -> None:
    """In a comment above it, on it, or before its first statement."""
    silent = set()
    for path in source_files():
        lines = path.read_text().splitlines()
        for _, handler in broad_handlers(parsed(path)):
            around = lines[handler.lineno - 2 : handler.body[0].lineno]
            if not any("#" in line for line in around):
                silent.add(f"{path.relative_to(ROOT)}:{handler.lineno}")
    assert not silent


# What a named tuple and the standard library call private, and is not.
PUBLIC_IN_SPITE_OF_THEIR_NAME = {"_replace", "_asdict", "_exit", "_fields"}


def test_sentences_in_the_code_say_who_does_what() -> None:
    vague = re.compile(r"\b(whoever|nobody|somebody|everybody|anybody)\b", re.IGNORECASE)
    assert not {
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if vague.search(line)
    }


def private_attributes(path: Path) -> set[str]:
    """Names with one underscore of anything but `self`, `cls` and `super()`."""
    return {
        node.attr
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in ("self", "cls", "super()")
    }


def test_no_test_reads_private_attributes_of_another_object() -> None:
    reaching = {
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in private_attributes(path) - PUBLIC_IN_SPITE_OF_THEIR_NAME
    }
    assert not reaching
