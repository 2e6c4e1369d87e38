import pytest

from capanode.hourly_rates import HourlyRates
from capanode.measurements import Speed
from capanode.pricing_policy import hourly_nano, propose_price
from protocol.messages import Task
from protocol.money import NANO_PER_CREDIT
from protocol.offers import Hardware
from protocol.pricing import PRICE_NANO_MAX

GIB = 1024**3
RATES = HourlyRates(cpu_core_hour_nano=20_000_000, gpu_gib_hour_nano=20_000_000)
SPEED = Speed(prefill_tps=1_000, decode_tps=40, batched_tps=200)


def test_an_hour_of_paid_work_earns_the_wage_of_the_busy_share() -> None:
    hourly = NANO_PER_CREDIT
    price = propose_price(Task.CAUSAL_LM, SPEED, hourly_nano=hourly)
    tokens_sold = 3_600 * SPEED.batched_tps // 2
    earned = tokens_sold * price.output_nano_per_mtok // 1_000_000
    assert hourly <= earned <= hourly * 11 // 10


def test_faster_hardware_asks_for_less_per_token() -> None:
    slow = propose_price(Task.CAUSAL_LM, SPEED, hourly_nano=NANO_PER_CREDIT)
    fast = propose_price(Task.CAUSAL_LM, Speed(9_000, 90, 900), hourly_nano=NANO_PER_CREDIT)
    assert fast.input_nano_per_mtok < slow.input_nano_per_mtok
    assert fast.output_nano_per_mtok < slow.output_nano_per_mtok


def test_each_task_is_charged_in_its_own_units() -> None:
    embedding = propose_price(Task.EMBEDDING, SPEED, hourly_nano=NANO_PER_CREDIT)
    image = propose_price(Task.IMAGE_CLASSIFICATION, SPEED, hourly_nano=NANO_PER_CREDIT)
    assert embedding.input_nano_per_mtok > 0 == embedding.output_nano_per_mtok
    assert image.image_nano > 0 == image.input_nano_per_mtok


def test_cached_input_costs_a_tenth_where_inputs_are_reused() -> None:
    price = propose_price(Task.CAUSAL_LM, SPEED, hourly_nano=NANO_PER_CREDIT)
    cached_nano = price.cached_nano_per_mtok
    assert cached_nano is not None
    assert price.input_nano_per_mtok <= 10 * cached_nano <= price.input_nano_per_mtok * 11 // 10
    embedding = propose_price(Task.EMBEDDING, SPEED, hourly_nano=NANO_PER_CREDIT)
    assert embedding.cached_nano_per_mtok is None


def test_prices_have_two_digits() -> None:
    price = propose_price(Task.CAUSAL_LM, SPEED, hourly_nano=123_456_789)
    assert int(str(price.output_nano_per_mtok)[2:] or "0") == 0


@pytest.mark.parametrize("hourly", [0, 1, 10**18])
def test_no_wage_and_no_speed_makes_an_impossible_price(hourly: int) -> None:
    price = propose_price(Task.CAUSAL_LM, Speed(0, 0, 0), hourly_nano=hourly)
    assert 0 <= price.output_nano_per_mtok <= PRICE_NANO_MAX
    assert (price.output_nano_per_mtok == 0) == (hourly == 0)


def test_hardware_is_paid_by_cores_or_by_gpu_memory() -> None:
    cpu = Hardware("cpu", "two cores", 8 * GIB, 1)
    gpu = Hardware("cuda", "H100", 80 * GIB, 2)
    assert hourly_nano(cpu, RATES, threads=2) == 40_000_000
    assert hourly_nano(gpu, RATES, threads=2) == 160 * 20_000_000
