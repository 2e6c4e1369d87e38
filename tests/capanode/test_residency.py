"""Who gives way to whom, over sequences of jobs: memory is never promised twice."""

import random

import pytest

from capanode.residency import REST_S, Footprint, Residency
from protocol.ids import Digest, sha256_digest

DEVICES = ("GPU-0", "GPU-1")


def digest(name: object) -> Digest:
    return sha256_digest(str(name).encode())


A, B, C, D = (digest(name) for name in "abcd")


def residency_of(room: int, **sizes: int) -> Residency:
    prints = {digest(name): Footprint("card", size) for name, size in sizes.items()}
    return Residency({"card": room}, prints)


def load(residency: Residency, *models: Digest, now_s: float = 0.0) -> None:
    for model in models:
        residency.swap(model, ())
        residency.note_loaded(model, now_s, took_s=0.0)


def victims(
    residency: Residency, model: Digest, now_s: float, *in_use: Digest
) -> tuple[Digest, ...] | None:
    return residency.victims_for(model, is_in_use=lambda one: one in in_use, now_s=now_s)


def test_room_that_is_there_costs_no_model_its_place() -> None:
    residency = residency_of(10, a=4, b=4)
    load(residency, A)
    assert victims(residency, B, 100.0) == ()


def test_the_least_recently_used_gives_way() -> None:
    residency = residency_of(10, a=5, b=5, c=5)
    load(residency, A, B)
    residency.note_use(A, 50.0)
    assert victims(residency, C, 100.0) == (B,)
    residency.note_use(B, 60.0)
    assert victims(residency, C, 100.0) == (A,)


def test_a_model_with_a_job_never_gives_way() -> None:
    residency = residency_of(10, a=5, b=5, c=5, d=10)
    load(residency, A, B)
    assert victims(residency, C, 100.0, A) == (B,)
    assert victims(residency, C, 100.0, A, B) is None
    assert victims(residency, D, 100.0, A) is None


def test_no_more_give_way_than_needed() -> None:
    residency = residency_of(10, a=2, b=8, c=7)
    load(residency, A, now_s=1.0)
    load(residency, B, now_s=2.0)
    assert victims(residency, C, 100.0) == (B,), "without b the small one may stay"


def test_a_model_rests_after_a_job_and_after_its_load() -> None:
    residency = residency_of(5, a=5, b=5)
    residency.swap(A, ())
    residency.note_loaded(A, 0.0, took_s=20.0)
    assert victims(residency, B, 19.0) is None
    assert residency.rest_ends_at == 20.0
    assert victims(residency, B, 20.0) == (A,)
    residency.note_use(A, 30.0)
    assert victims(residency, B, 30.0 + REST_S / 2) is None
    assert victims(residency, B, 30.0 + REST_S) == (A,)


def test_a_model_to_keep_gives_way_to_none() -> None:
    residency = residency_of(5, a=5, b=5)
    load(residency, A)
    residency.keep(A)
    assert victims(residency, B, 100.0) is None


@pytest.mark.parametrize("seed", range(60))
def test_no_sequence_of_jobs_overfills_a_device_or_evicts_a_model_in_use(seed: int) -> None:
    rng = random.Random(seed)
    room = {device: rng.randint(8, 20) for device in DEVICES}
    prints = {
        digest(number): Footprint(device := rng.choice(DEVICES), rng.randint(1, room[device]))
        for number in range(rng.randint(2, 9))
    }
    residency = Residency(room, prints)
    jobs = dict.fromkeys(prints, 0)
    used_at = dict.fromkeys(prints, 0.0)
    now_s = 0.0
    for _ in range(300):
        now_s += rng.choice((0.1, 1.0, 3.0))
        model = rng.choice(list(prints))
        if jobs[model] and rng.random() < 0.6:
            jobs[model] -= 1
            residency.note_use(model, now_s)
            used_at[model] = now_s
            continue
        if model not in residency.loaded:
            leaving = residency.victims_for(model, is_in_use=lambda one: jobs[one] > 0, now_s=now_s)
            if leaving is None:
                continue
            assert leaving == tuple(sorted(leaving, key=lambda one: (used_at[one], one)))
            for other in leaving:
                assert not jobs[other]
                assert now_s >= used_at[other] + REST_S
                assert prints[other].device == prints[model].device
            residency.swap(model, leaving)
            residency.note_loaded(model, now_s, took_s=0.0)
            used_at[model] = now_s
        jobs[model] += 1
        residency.note_use(model, now_s)
        used_at[model] = now_s
        for device in DEVICES:
            loaded = (prints[one] for one in residency.loaded)
            assert sum(one.bytes for one in loaded if one.device == device) <= room[device]
        assert all(one in residency.loaded for one, count in jobs.items() if count)
