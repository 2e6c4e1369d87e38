"""What Prometheus reads."""

from coordinator.buyer.ahead.pool import PoolCounts
from coordinator.gateway.metrics import MODELS_MAX, OTHER, Metrics
from protocol.messages import Task
from protocol.net.transport import TransportStatistics


def test_two_programs_in_one_process_do_not_share_series() -> None:
    first, second = Metrics(), Metrics()
    first.of_model("m").prompt_tokens.inc(3)
    assert 'capacloud_prompt_tokens_total{model_name="m"} 3.0' in first.render().decode()
    assert 'model_name="m"' not in second.render().decode()


def test_models_beyond_the_bound_share_one_label() -> None:
    metrics = Metrics()
    for number in range(MODELS_MAX + 5):
        metrics.of_model(f"m{number}").generation_tokens.inc()
    text = metrics.render().decode()
    assert f'capacloud_generation_tokens_total{{model_name="{OTHER}"}} 5.0' in text
    assert text.count("capacloud_generation_tokens_total{") == MODELS_MAX + 1
    assert metrics.of_model("m0") is metrics.of_model("m0")


def test_the_offer_gauges_follow_the_book() -> None:
    metrics = Metrics()
    metrics.set_market(3, {"a": 2, "b": 1})
    metrics.set_market(1, {"b": 1})
    text = metrics.render().decode()
    assert "capacloud_nodes 1.0" in text
    assert 'capacloud_offers{model_name="b"} 1.0' in text
    assert 'model_name="a"' not in text


def test_a_name_of_a_strangers_model_cannot_steer_a_terminal() -> None:
    metrics = Metrics()
    metrics.set_market(1, {"\x1b[2Jowned\u202e": 1})
    metrics.of_model("\x1b[2Jowned").images.inc()
    text = metrics.render().decode()
    assert "owned" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_jobs_count_by_task_and_outcome() -> None:
    metrics = Metrics()
    metrics.count_job(Task.EMBEDDING, "node_lost", attempts=3)
    text = metrics.render().decode()
    assert 'capacloud_jobs_total{outcome="node_lost",task="embedding"} 1.0' in text
    assert 'capacloud_job_attempts_total{task="embedding"} 3.0' in text


def test_the_network_is_shown_by_the_names_of_its_figures() -> None:
    metrics = Metrics()
    metrics.set_network(TransportStatistics(connections=7, gossip_rejected=3))
    metrics.set_leases_ahead(PoolCounts(ready=2, hits=5))
    text = metrics.render().decode()
    assert 'capacloud_network{figure="connections"} 7.0' in text
    assert 'capacloud_leases_ahead{figure="hits"} 5.0' in text
    assert 'capacloud_network{figure="gossip_rejected"} 3.0' in text
