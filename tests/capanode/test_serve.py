import pytest

from capanode.errors import IsolationError
from capanode.milestones import Milestone
from capanode.sandbox.probe import IsolationReport
from capanode.start_plan import require_isolation
from protocol.messages import IsolationTier


def test_without_a_sandbox_a_node_does_not_start() -> None:
    advice = ("install bubblewrap", "until then this node refuses remote jobs")
    report = IsolationReport(IsolationTier.NONE, (), advice, None)
    told: list[Milestone] = []
    with pytest.raises(IsolationError, match="install bubblewrap; until then"):
        require_isolation(report, told.append)
    assert not told
