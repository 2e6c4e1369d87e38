"""What works on this machine, and what to do about what does not: `capanode doctor`.

Each check looks at one thing, changes nothing, and waits for nothing longer than a few seconds.
"""

import ctypes
import os
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from capanode.config import NodeConfig
from capanode.errors import NotRunningError, OwnerCommandError
from capanode.gpu_trial import settle_gpus
from capanode.hardware import MachineCheck, hardware_findings, probe_machine, usable_gpus
from capanode.models.errors import CorruptModelError, ModelError, UnsafeModelError
from capanode.models.store import ModelStore
from capanode.ports import PortError, check_port
from capanode.sandbox.probe import IsolationReport, probe_isolation
from capanode.start_plan import stops_start
from capanode.status_socket import ask_status
from capanode.vllm_package import installed_vllm, is_known_vllm
from capanode.workers import refuse_code
from protocol.messages import IsolationTier
from protocol.net.addresses import check_tcp, split_peer_id
from protocol.net.errors import AddressInvalid
from protocol.programs.keyfile import KeyFileError, load_key_file

# A new model of the smallest kind, its conversion, and room for receipts.
_FREE_BYTES_MIN = 2 * 1024**3
_DIAL_WITHIN_S = 3.0
# What adjtimex(2) returns while nothing keeps the clock right.
_CLOCK_UNSYNCHRONIZED = 5
_TIMEX_BYTES = 256

# Without these no job can run; the others only make the node better.
ESSENTIAL = frozenset({"key", "isolation", "memory", "models", "disk", "port"})


class FindingLevel(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    # The node would be better with it.
    HINT = "hint"
    # The next steps of an owner who sets a node up.
    TO_DO = "to do"
    # No node can serve here before it is mended.
    BLOCKER = "BLOCKER"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`essential` are the subjects without which a node does not start. A node that `is_running`
    can serve whatever is found."""

    findings: tuple[MachineCheck, ...]
    essential: frozenset[str] = ESSENTIAL
    is_running: bool = False

    def level_of(self, finding: MachineCheck) -> FindingLevel:
        if finding.works:
            return FindingLevel.HINT if finding.advice else FindingLevel.OK
        if finding.is_to_do:
            return FindingLevel.TO_DO
        return FindingLevel.BLOCKER if finding.subject in self.essential else FindingLevel.HINT

    @property
    def blockers(self) -> tuple[MachineCheck, ...]:
        return self._at(FindingLevel.BLOCKER)

    @property
    def can_serve(self) -> bool:
        return not self.blockers and not self._at(FindingLevel.TO_DO)

    @property
    def verdict(self) -> str:
        if self.blockers:
            return f"This machine cannot serve jobs yet: see {_subjects(self.blockers)}."
        if to_do := self._at(FindingLevel.TO_DO):
            return f"This machine can serve jobs. Still to do: {_subjects(to_do)}."
        return "This machine serves jobs." if self.is_running else "This machine can serve jobs."

    def _at(self, level: FindingLevel) -> tuple[MachineCheck, ...]:
        return tuple(finding for finding in self.findings if self.level_of(finding) is level)


def _subjects(findings: Iterable[MachineCheck]) -> str:
    return ", ".join(dict.fromkeys(finding.subject for finding in findings))


def examine(config: NodeConfig) -> Diagnosis:
    """Look at everything that `start` would use with these settings. Blocks for some seconds at
    most."""
    running = _find_running(config)
    machine = probe_machine()
    gpus = usable_gpus(machine)
    isolation = probe_isolation([gpu.device for gpu in gpus])
    failures = settle_gpus(machine, gpus, isolation).failures
    failure = failures[0] if failures else None
    findings = (
        *_running(running),
        _key(config),
        _isolation(isolation),
        *hardware_findings(machine, failure),
        _vllm(isolation),
        _priority(config.worker_nice),
        *(_port(place, running) for place in config.listen),
        *_coordinators(config, running),
        _models(config, running),
        _disk(config),
        _clock(),
    )
    is_stopped = failure is not None and stops_start(config.if_gpu_fails, failure)
    essential = ESSENTIAL | ({"gpu"} if is_stopped else set())
    return Diagnosis(findings, frozenset(essential), is_running=running is not None)


def _find_running(config: NodeConfig) -> Mapping[str, Any] | None:
    """The status of the node that runs with these settings' data directory."""
    try:
        return ask_status(config.status_socket)
    except (NotRunningError, OwnerCommandError):
        return None


def _running(running: Mapping[str, Any] | None) -> Iterator[MachineCheck]:
    if running is not None:
        paused = running.get("paused")
        state = f"runs, but is paused: {paused}" if paused else "runs and takes jobs"
        yield MachineCheck("node", True, f"{state}; `capanode status` says more")


def _key(config: NodeConfig) -> MachineCheck:
    try:
        key = load_key_file(config.key_path)
    except KeyFileError as error:
        if config.key_path.exists():
            return MachineCheck("key", False, str(error))
        advice = "run `capanode init`, or name its --data-dir"
        return MachineCheck("key", False, str(error), advice, is_to_do=True)
    mode = stat.S_IMODE(config.data_dir.stat().st_mode)
    if mode & 0o077:
        advice = f"run `chmod 700 {config.data_dir}`"
        return MachineCheck("key", True, f"{key.peer_id}; its folder is open to others", advice)
    return MachineCheck("key", True, key.peer_id)


def _isolation(report: IsolationReport) -> MachineCheck:
    failed = [f"{fact.name}: {fact.detail}" for fact in report.facts if not fact.ok]
    detail = f"{report.tier.value}: held in all {len(report.facts)} checks of a trial break-out"
    if report.sandbox is None:
        detail = "; ".join(failed) or "nothing works"
    return MachineCheck("isolation", report.sandbox is not None, detail, "; ".join(report.advice))


def _vllm(report: IsolationReport) -> MachineCheck:
    """The optional engine. Without it nothing is wrong."""
    installed = installed_vllm()
    if installed is None:
        return MachineCheck("vllm", True, "not installed: an optional engine for models on GPUs")
    if not is_known_vllm(installed):
        advice = "run `pip install 'capacloud[vllm]'`; until then it is not used"
        return MachineCheck("vllm", False, f"{installed} is a version that is not run", advice)
    if report.sandbox is None or report.sandbox.tier is not IsolationTier.BWRAP:
        advice = "vLLM is used with the isolation tier bwrap only: see `isolation`"
        return MachineCheck("vllm", False, f"{installed}, and nothing here confines it", advice)
    return MachineCheck("vllm", True, f"{installed}, for GPUs (which we never saw it on)")


def _priority(nice: int) -> MachineCheck:
    if nice:
        detail = f"models run at nice {nice}: the node's own work comes first"
        return MachineCheck("priority", True, detail)
    detail = "models run at nice 0: a busy model delays every other job's tokens and the node's own"
    return MachineCheck("priority", True, detail, "set worker_nice to 5")


def _port(place: str, running: Mapping[str, Any] | None) -> MachineCheck:
    """Whether we could listen there now; where our own node does, it can. Another node's port is
    taken like that of any other program."""
    if running is not None and place in running.get("listen", ()):
        return MachineCheck("port", True, f"{place} is served by the node that runs here")
    try:
        check_port(place)
    except PortError as error:
        return MachineCheck("port", False, str(error), error.advice)
    return MachineCheck("port", True, f"{place} is free")


def _coordinators(config: NodeConfig, running: Mapping[str, Any] | None) -> Iterator[MachineCheck]:
    """Those of a node that runs were perhaps named on its command line."""
    if running is not None and running.get("coordinators"):
        for line in running["coordinators"]:
            detail = f"{line['peer_id']}: {line['state']}"
            advice = line["error"] and f"{line['error']}; the node keeps trying by itself"
            yield MachineCheck("coordinator", line["state"] == "attached", detail, advice)
        return
    if not config.coordinators:
        advice = "name one with --coordinator or `coordinators`: it prints its address at its start"
        detail = "none is listed, so no job can come"
        yield MachineCheck("coordinator", False, detail, advice, is_to_do=True)
    for coordinator in config.coordinators:
        place, _ = split_peer_id(coordinator.address)
        try:
            check_tcp(place)
            _, _, host, _, port = place.split("/")
            socket.create_connection((host, int(port)), timeout=_DIAL_WITHIN_S).close()
        except (AddressInvalid, OSError) as error:
            advice = "check the address and any firewall between; the node keeps trying by itself"
            yield MachineCheck("coordinator", False, f"{place} does not answer: {error}", advice)
        else:
            yield MachineCheck("coordinator", True, f"{place} answers")


def _models(config: NodeConfig, running: Mapping[str, Any] | None) -> MachineCheck:
    if running is not None and running.get("models"):
        names = ", ".join(model["name"] for model in running["models"])
        return MachineCheck("models", True, f"{names}: served by the node that runs here")
    try:
        store = ModelStore(config.model_store)
        wanted = [model.name for model in config.models] or sorted(store.names())
        for name in wanted:
            stored = store.find(name)
            store.check(stored.digest)
            if not config.allow_code_models:
                refuse_code(stored)
    except UnsafeModelError as error:
        return MachineCheck("models", False, str(error), "`capanode models rm` forgets it")
    except CorruptModelError as error:
        return MachineCheck("models", False, str(error), "pull it again")
    except ModelError as error:
        return MachineCheck(
            "models", False, str(error), "`capanode models list` shows what there is"
        )
    if not wanted:
        advice = "get one: `capanode models list`, then `capanode models pull NAME`"
        detail = f"no model in {config.model_store}"
        return MachineCheck("models", False, detail, advice, is_to_do=True)
    return MachineCheck("models", True, f"{', '.join(wanted)} in {config.model_store}")


def _disk(config: NodeConfig) -> MachineCheck:
    folder = _existing(config.data_dir)
    if not os.access(folder, os.W_OK):
        advice = "give the folder to this user, or use another --data-dir"
        return MachineCheck("disk", False, f"cannot write in {folder}", advice)
    short = []
    for place in {folder, _existing(config.model_store)}:
        free = shutil.disk_usage(place).free
        if free < _FREE_BYTES_MIN:
            short.append(f"{free / 1e9:.1f} GB free under {place}")
    if short:
        advice = "free some space: a full disk stops the node from taking jobs"
        return MachineCheck("disk", False, "; ".join(sorted(short)), advice)
    return MachineCheck("disk", True, f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free")


def _existing(path: Path) -> Path:
    """The nearest folder above that is there already."""
    while not path.exists():
        path = path.parent
    return path


def _clock() -> MachineCheck:
    """Leases hold for seconds: a clock that drifts makes the node refuse them as expired."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(
            ctypes.create_string_buffer(_TIMEX_BYTES)
        )
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return MachineCheck(
            "clock", True, "this system does not say whether its clock is kept right"
        )
    if state == _CLOCK_UNSYNCHRONIZED:
        advice = "run a time service (systemd-timesyncd, chrony): leases expire within seconds"
        return MachineCheck("clock", False, "nothing keeps this machine's clock right", advice)
    return MachineCheck("clock", True, "kept right by a time service")
