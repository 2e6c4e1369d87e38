"""Serves jobs: one `ServedJob` per channel takes a leased job from its opening to its receipt.

`upload` receives the payload, `served_job` runs the job between its client and its worker, and
`closing` says the last words; `ending` and `times` are what the receipt and the log tell of it.
`JobServer` is what the node uses.
"""

from capanode.jobs.server import ROLE, JobServer

__all__ = ["ROLE", "JobServer"]
