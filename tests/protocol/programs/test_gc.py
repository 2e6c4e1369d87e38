import gc

from protocol.programs.gc import settle_garbage_collection


def test_what_start_up_made_is_exempt_from_collection() -> None:
    before = gc.get_freeze_count()
    try:
        settle_garbage_collection()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
