"""The table from wire codes to HTTP."""

import json

import pytest

from coordinator.errors import ConstraintError, StorageFullError
from coordinator.gateway.errors import ANSWERS, ApiError, api_error_of, error_of, invalid
from coordinator.gateway.http.dialect import problem_response
from coordinator.gateway.http.openai.dialect import OPENAI
from protocol.errors import Code


@pytest.mark.parametrize("code", list(Code))
def test_every_wire_code_has_an_answer(code: Code) -> None:
    answer = ANSWERS[code]
    assert 400 <= answer.status < 600
    error = error_of(code, "words of the market")
    body = json.loads(OPENAI.error_body(error.problem))["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    assert body["code"]


@pytest.mark.parametrize(
    ("code", "status", "api_code"),
    [
        (Code.OUT_OF_FUNDS, 402, "out_of_funds"),
        (Code.BUDGET_EXCEEDED, 402, "budget_exceeded"),
        (Code.UNKNOWN_MODEL, 404, "model_not_found"),
        (Code.NO_NODE_FITS, 503, "no_node_fits"),
        (Code.BUSY, 429, "busy"),
        (Code.PROMPT_TOO_LONG, 400, "context_length_exceeded"),
        (Code.IMAGE_TOO_LARGE, 413, "image_too_large"),
        (Code.INVALID_IMAGE, 400, "invalid_image"),
        (Code.POISON_INPUT, 400, "poison_input"),
        (Code.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (Code.NODE_LOST, 502, "node_lost"),
    ],
)
def test_the_statuses_that_clients_rely_on(code: Code, status: int, api_code: str) -> None:
    problem = error_of(code, "x").problem
    body = json.loads(OPENAI.error_body(problem))["error"]
    assert (problem.status, body["code"]) == (status, api_code)


def test_words_of_nodes_stay_inside_where_a_user_cannot_act_on_them() -> None:
    for code in (Code.INTERNAL, Code.MALFORMED, Code.WORKER_CRASHED, Code.NODE_LOST):
        assert "Traceback" not in str(error_of(code, "Traceback: /home/node/secret.py"))
    assert str(error_of(Code.INVALID_INPUT, "a token id is wrong")) == "a token id is wrong"


def test_a_busy_market_says_when_to_come_back() -> None:
    headers = dict(problem_response(error_of(Code.BUSY, "").problem, OPENAI).headers)
    assert headers[b"x-should-retry"] == b"true"
    assert headers[b"retry-after"] == b"1"
    headers = dict(
        problem_response(error_of(Code.BUSY, "", retry_after_ms=2_500).problem, OPENAI).headers
    )
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"3", b"2500")


def test_no_node_fits_is_worth_a_retry_only_if_somebody_said_when() -> None:
    assert error_of(Code.NO_NODE_FITS, "x").problem.should_retry is False
    assert error_of(Code.NO_NODE_FITS, "x", retry_after_ms=400).problem.should_retry is True


@pytest.mark.parametrize("code", [Code.NODE_LOST, Code.WORKER_CRASHED, Code.BUSY])
def test_what_was_billed_in_part_is_not_sent_again(code: Code) -> None:
    assert error_of(code, "x").problem.should_retry is True
    assert error_of(code, "x", is_billed=True).problem.should_retry is False


def test_errors_of_the_input_name_the_routes_own_field() -> None:
    assert error_of(Code.PROMPT_TOO_LONG, "x", input_param="messages").problem.param == "messages"
    assert error_of(Code.UNKNOWN_MODEL, "x", input_param="messages").problem.param == "model"


def test_errors_that_were_not_written_for_users_are_not_shown() -> None:
    secret = api_error_of(ConstraintError("UNIQUE constraint failed: accounts.id"))
    assert secret.problem.status == 500
    assert "accounts" not in str(secret)
    assert api_error_of(StorageFullError("/var/lib/books is full")).problem.status == 503
    error = invalid("no", "x")
    assert api_error_of(error) is error
    assert isinstance(error, ApiError)


def test_a_code_of_a_later_version_is_the_markets_own_failure() -> None:
    error = error_of(Code("moon_phase"), "")
    assert (error.problem.status, error.problem.code) == (500, "moon_phase")
