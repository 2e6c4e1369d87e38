"""What an account may see of itself: key, credit, usage, jobs, evidence, generations."""

import base64
from typing import Any

import httpx
import pytest

from tests.coordinator.gateway.fake_market import CLIENT_KEY, NODE_KEY, OTHER_KEY, FakeRecords
from tests.coordinator.gateway.harness import Harness

JOB = FakeRecords.job_id
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}


def data_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["data"]


@pytest.mark.parametrize("path", ["/v1/key", "/v1/auth/key"])
def test_a_key_sees_its_budget(gateway: Harness, path: str) -> None:
    data = data_of(gateway.get(path))
    assert (data["label"], data["usage"], data["limit"]) == ("laptop", 1.0, 5.0)
    assert data["limit_remaining"] == 3.5
    assert data["account"] == CLIENT_KEY.peer_id
    assert data["held_nano"] == 500_000_000


def test_credits_are_those_of_the_account(gateway: Harness) -> None:
    data = data_of(gateway.get("/v1/credits"))
    assert (data["total_credits"], data["total_usage"]) == (10.0, 7.0)
    assert (data["available_nano"], data["held_nano"]) == (2_500_000_000, 500_000_000)


def test_usage_is_by_day_and_model(gateway: Harness) -> None:
    (row,) = data_of(gateway.get("/v1/usage?date=2026-11-27&days=7"))
    assert (row["date"], row["model"], row["requests"]) == ("2026-11-27", "tiny-chat", 3)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (21, 15)
    assert row["amount_nano"] == 1_620
    (today,) = data_of(gateway.get("/v1/usage"))
    assert today["date"] == "2027-01-15"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("usage?days=0", "days"),
        ("usage?days=x", "days"),
        ("usage?days=99", "days"),
        ("usage?date=yesterday", "date"),
        ("usage?date=0001-01-01", "date"),
        ("jobs?limit=101", "limit"),
        ("jobs?before=x", "before"),
        ("jobs/nonsense", "id"),
        ("receipts/nonsense", "id"),
        ("generation", "id"),
        ("generation?id=x", "id"),
        ("generation/x", "id"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(gateway: Harness, query: str, param: str) -> None:
    response = gateway.get(f"/v1/{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_jobs_come_page_by_page(gateway: Harness) -> None:
    first = gateway.get("/v1/jobs?limit=1").json()
    assert first["has_more"]
    assert [job["id"] for job in first["data"]] == [JOB]
    second = gateway.get(f"/v1/jobs?before={first['next_before']}").json()
    assert not second["has_more"]


def test_a_job_shows_every_attempt_and_why_it_ended(gateway: Harness) -> None:
    job = gateway.get(f"/v1/jobs/{JOB}").json()
    assert (job["state"], job["amount_nano"]) == ("settled", 540)
    refused, answered = job["attempts"]
    assert (refused["code"], refused["finish"]) == ("busy", None)
    assert (answered["node"], answered["finish"]) == (NODE_KEY.peer_id, "stop")


def test_evidence_is_what_the_verifier_reads(gateway: Harness) -> None:
    evidence = gateway.get(f"/v1/receipts/{JOB}").json()
    assert evidence["format"] == "capacloud-evidence-1"
    assert base64.b64decode(evidence["receipt"]) == b"receipt"
    assert "delivery" not in evidence


@pytest.mark.parametrize("path", [f"/v1/generation?id=chatcmpl-{JOB}", f"/v1/generation/{JOB}"])
def test_a_generation_has_the_names_of_openrouter_and_ours(gateway: Harness, path: str) -> None:
    data = data_of(gateway.get(path))
    assert (data["tokens_prompt"], data["tokens_completion"]) == (7, 5)
    assert (data["finish_reason"], data["provider_name"]) == ("stop", NODE_KEY.peer_id)
    assert data["total_cost"] == pytest.approx(540 / 1e9)
    assert (data["latency"], data["generation_time"]) == (20, 80)
    assert [attempt["code"] for attempt in data["attempts"]] == ["busy", None]
    assert data["receipts"] == ["e" * 64]


@pytest.mark.parametrize("path", ["jobs/{}", "receipts/{}", "generation/{}", "generation?id={}"])
def test_what_belongs_to_others_is_not_there(gateway: Harness, path: str) -> None:
    other = {"authorization": f"Bearer {OTHER_KEY}"}
    response = gateway.get(f"/v1/{path.format(JOB)}", headers=other)
    assert response.status_code == 404


def test_a_whole_answer_says_how_long_each_stage_took(gateway: Harness) -> None:
    response = gateway.post(CHAT, BODY)
    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert list(stages) == ["parse", "match", "hold", "queue", "dispatch", "node"]
    assert stages["match"] == "0.042"
    assert stages["hold"] == "0.958"
    assert stages["queue"] == "3.000"


def test_a_stream_says_what_is_known_by_its_headers(gateway: Harness) -> None:
    response = gateway.post(CHAT, BODY | {"stream": True})
    stages = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["parse", "match", "hold", "node"]


@pytest.mark.parametrize("path", ["/v1/credits", "/v1/usage", "/v1/jobs"])
def test_people_who_share_an_account_do_not_see_each_others_purchases(
    gateway: Harness, path: str
) -> None:
    gateway.market.shares_account = True
    response = gateway.get(path)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "account_is_shared"
    assert gateway.get("/v1/key").status_code == 200
