"""Which models were hashed whole since their files last changed, so that a start reads no model
twice: a file per model, with a stamp of its files, and the time of the check as its own.

A disk that loses a bit changes no file's time, so a check is believed for a month only.
"""

import contextlib
import hashlib
import time
from pathlib import Path

import structlog

from capanode.models.files import disk_errors_named, make_readable_folder, write_durably
from protocol.errors import CapaError
from protocol.ids import Digest
from protocol.programs.sharing.model_folder import StoredModel

log = structlog.get_logger(__name__)

BELIEVED_S = 30 * 24 * 3_600


class CheckMarks:
    """The marks below `folder`. Where they cannot be written, each start checks anew."""

    def __init__(self, folder: Path, *, below: Path) -> None:
        self._folder = folder
        self._below = below

    def is_fresh(self, model: StoredModel) -> bool:
        mark = self._folder / model.digest
        try:
            age_s = time.time() - mark.stat().st_mtime
            return 0 <= age_s < BELIEVED_S and mark.read_text() == _stamp(model)
        except (OSError, ValueError):
            return False

    def keep(self, model: StoredModel) -> None:
        """Its files were hashed now."""
        try:
            with disk_errors_named(self._folder):
                make_readable_folder(self._folder, below=self._below)
                write_durably(self._folder / model.digest, _stamp(model).encode())
        except (OSError, CapaError) as error:
            log.info("check_not_kept", model=model.digest, error=str(error))

    def forget(self, digest: Digest) -> None:
        with contextlib.suppress(OSError):
            (self._folder / digest).unlink(missing_ok=True)


def _stamp(model: StoredModel) -> str:
    """Changes with each change of a file that goes through the system."""
    facts = []
    for file in model.manifest.files:
        found = (model.path / file.path).stat()
        facts.append((file.path, found.st_size, found.st_mtime_ns, found.st_ino))
    return hashlib.sha256(repr(facts).encode()).hexdigest()
