"""What ended a text, as its node signed it."""

from coordinator.buyer.result import PurchaseResult
from protocol.endings import Finish
from protocol.generation import GenerationInput


def stop_of(job_input: GenerationInput, outcome: PurchaseResult) -> str | int | None:
    """The stop string, or the id of the stop token, that ended the answer; None if the model ended
    it, a limit did, or its node is of a version that does not say."""
    receipt = outcome.receipt
    if receipt is None or receipt.message.finish is not Finish.STOP:
        return None
    index, token = receipt.message.end_stop, receipt.message.end_token
    if index is not None and index < len(job_input.stop):
        return job_input.stop[index]
    return token if token in job_input.stop_token_ids else None
