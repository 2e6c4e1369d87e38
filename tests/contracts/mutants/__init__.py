"""Ways to break the contract, each of which the named test must notice.

`mutate.py` applies them one at a time; docs/settlement.md lists them.
"""

from tests.contracts.mutants.client_leg import CLIENT_LEG
from tests.contracts.mutants.common_parts import COMMON_PARTS
from tests.contracts.mutants.operator_leg import OPERATOR_LEG
from tests.contracts.mutants.payee_leg import PAYEE_LEG

MUTANTS = (*CLIENT_LEG, *OPERATOR_LEG, *PAYEE_LEG, *COMMON_PARTS)
