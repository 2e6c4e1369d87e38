import random

from capanode.engines.page_keys import page_keys
from capanode.engines.page_pool import PagePool


def keys(tokens: str, salt: str = "") -> list[bytes]:
    return list(page_keys(list(tokens.encode()), salt, page_tokens=2))


def keep(pool: PagePool, names: list[bytes]) -> list[int]:
    """What a job does that found nothing."""
    pages = [pool.take() for _ in names]
    for page, key in zip(pages, names, strict=True):
        pool.name(page, key)
    pool.give_back(pages)
    return pages


def test_a_key_stands_for_all_tokens_up_to_its_page() -> None:
    assert len(keys("abcde")) == 2
    assert keys("abcd")[0] == keys("abxy")[0]
    assert keys("abcd")[1] != keys("xbcd")[1]
    assert keys("a") == []


def test_salts_share_no_key() -> None:
    assert not set(keys("abcdef", "one")) & set(keys("abcdef", "two"))


def test_the_longest_beginning_is_found() -> None:
    pool = PagePool(4)
    pages = keep(pool, keys("abcdef"))
    assert pool.find(keys("abcdxy")) == pages[:2]
    assert pool.find(keys("xxcdef")) == []


def test_the_end_of_a_beginning_goes_before_its_start_and_the_longest_unused_first() -> None:
    pool = PagePool(4)
    old, new = keep(pool, keys("abcd")), keep(pool, keys("wxyz"))
    pool.hold(old)
    pool.give_back(old)
    assert [pool.evict() for _ in range(4)] == [new[1], new[0], old[1], old[0]]


def test_a_page_in_use_is_not_evicted_and_a_shared_one_waits_for_its_last_user() -> None:
    pool = PagePool(2)
    first, second = keep(pool, keys("abcd"))
    pool.hold([first])
    pool.hold([first])
    assert pool.free_count == 1
    assert pool.take() == second
    pool.give_back([first])
    assert pool.free_count == 0
    pool.give_back([first])
    assert pool.free_count == 1
    assert pool.find(keys("abcd")) == [first]


def test_of_two_jobs_that_computed_one_page_the_first_is_found() -> None:
    pool = PagePool(3)
    one, two = pool.take(), pool.take()
    pool.name(one, b"key")
    pool.name(two, b"key")
    pool.give_back([one])
    pool.give_back([two])
    assert pool.find([b"key"]) == [one]
    assert pool.kept_count == 1
    assert pool.free_count == 3


def test_whatever_jobs_do_each_page_is_free_kept_or_used() -> None:
    rng = random.Random(5)
    pool = PagePool(12)
    held: list[list[int]] = []
    for _ in range(3000):
        names = keys("".join(rng.choice("ab") for _ in range(2 * rng.randrange(1, 5))))
        if held and (rng.random() < 0.5 or pool.free_count < len(names)):
            pool.give_back(held.pop(rng.randrange(len(held))))
            continue
        if pool.free_count < len(names):
            continue
        found = pool.find(names)
        pool.hold(found)
        fresh = [pool.take() for _ in names[len(found) :]]
        for page, key in zip([*found, *fresh], names, strict=True):
            pool.name(page, key)
        held.append([*found, *fresh])
        used = {page for pages in held for page in pages}
        assert pool.free_count == 12 - len(used)
    for pages in held:
        pool.give_back(pages)
    assert pool.free_count == 12
