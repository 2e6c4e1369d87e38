import gc

from protocol.programs.gc import settle_garbage_collection


def test_what_start_up_made_is_exempt_from_collection() -> None:
    made = [{"number": number} for number in range(100)]
    before = gc.get_freeze_count()
    settle_garbage_collection()
    assert gc.get_freeze_count() >= before + len(made)
