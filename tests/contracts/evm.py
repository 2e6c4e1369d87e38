"""An EVM in this process: fast enough for every revert, with time and chain id in our hands.

It runs the committed bytecode, or that of `CAPACLOUD_SETTLEMENT_ARTIFACT`: so the mutation run uses
the same tests. Its gas figures leave out calldata and intrinsic gas; `test_gas.py` has real ones.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from eth_abi.abi import decode

from contracts.abi import Artifact, load_artifact
from contracts.build import build
from contracts.chain import Call
from contracts.errors import RevertedError
from contracts.keccak import keccak
from contracts.receipts import Log
from contracts.units import Address, address_from_bytes, parse_address

ARTIFACT_VARIABLE = "CAPACLOUD_SETTLEMENT_ARTIFACT"
SOURCES = Path(__file__).parent / "sources"
START_S = 1_800_000_000
# EIP-170: more code than this cannot be deployed.
CODE_BYTES_MAX = 24_576
DEPLOYER = address_from_bytes(keccak(b"deployer"))


def settlement_artifact() -> Artifact:
    path = os.environ.get(ARTIFACT_VARIABLE)
    return parse_artifact(Path(path).read_text()) if path else load_artifact("Settlement")


@cache
def compile_source(name: str) -> Artifact:
    """A contract that only tests need, such as a token that cheats."""
    return parse_artifact(build(f"sources/{name}", folder="tests/contracts"))


def parse_artifact(text: str) -> Artifact:
    content = json.loads(text)
    return Artifact(content["name"], content["abi"], bytes.fromhex(content["bytecode"][2:]))


class Evm:
    def __init__(self) -> None:
        self._env = _new_environment()
        self.now_s = START_S

    @property
    def now_s(self) -> int:
        return int(self._env.timestamp)

    @now_s.setter
    def now_s(self, value: int) -> None:
        self._env.timestamp = value

    @property
    def chain_id(self) -> int:
        return int(self._env.evm.patch.chain_id)

    @contextmanager
    def anchored(self) -> Iterator[None]:
        """Whatever happens inside is undone, time included."""
        with self._env.anchor():
            yield

    @contextmanager
    def forked(self, chain_id: int) -> Iterator[None]:
        """The same state on a chain that split off and calls itself `chain_id`."""
        before = self.chain_id
        self._env.evm.patch.chain_id = chain_id
        try:
            yield
        finally:
            self._env.evm.patch.chain_id = before

    def deploy(self, data: bytes, sender: Address = DEPLOYER) -> Address:
        """The new contract's address. Raises RevertedError with its constructor's reason."""
        address, computation = self._env.deploy(sender=sender, bytecode=data)
        if computation.is_error:
            raise RevertedError(_reason(bytes(computation.output)))
        return parse_address(str(address))

    def send(self, sender: Address, call: Call) -> tuple[bytes, list[Log]]:
        """The answer and the logs. Raises RevertedError with the contract's reason."""
        return self._run(sender, call, is_modifying=True)

    def ask(self, artifact: Artifact, address: Address, function: str, *args: Any) -> Any:
        data = artifact.encode(function, *args)
        answer, _ = self._run(DEPLOYER, Call(address, data), is_modifying=False)
        return artifact.decode_result(function, answer)[0]

    def _run(self, sender: Address, call: Call, *, is_modifying: bool) -> tuple[bytes, list[Log]]:
        computation = self._env.execute_code(
            to_address=call.to,
            sender=sender,
            data=call.data,
            is_modifying=is_modifying,
        )
        if computation.is_error:
            raise RevertedError(_reason(bytes(computation.output)))
        logs = [
            Log(
                address_from_bytes(address),
                tuple(topic.to_bytes(32) for topic in topics),
                data,
                0,
                index,
                "",
            )
            for index, (address, topics, data) in enumerate(computation.get_log_entries())
        ]
        return bytes(computation.output), logs


def _new_environment() -> Any:
    """A chain without a network. Its import raises Python's recursion limit, which is undone."""
    limit = sys.getrecursionlimit()
    import boa  # noqa: PLC0415

    sys.setrecursionlimit(limit)
    environment = boa.Env()
    # Mutants are compiled without optimization. `test_artifacts.py` sees to the real limit.
    environment.evm.patch.code_size_limit = 2 * CODE_BYTES_MAX
    return environment


def _reason(output: bytes) -> str:
    return str(decode(["string"], output[4:])[0]) if len(output) > 4 else ""
