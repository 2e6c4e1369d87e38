"""Several answers to one request, and scores of tokens."""

from typing import Any

from coordinator.buyer.errors import JobFailed
from protocol.errors import Code
from protocol.generation import GenerationInput
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import ANSWER, PATH, asked, body, error_of, events

COMPLETIONS = "/v1/completions"


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", "prompt": "Once upon", **more}


def inputs(gateway: Harness) -> list[GenerationInput]:
    found = [spec.job_input for spec in gateway.market.specs]
    return [item for item in found if isinstance(item, GenerationInput)]


def test_n_answers_are_n_jobs_with_seeds_of_their_own(gateway: Harness) -> None:
    response = gateway.post(PATH, body(n=3, seed=7))
    answer = response.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {ANSWER}
    assert sorted(item.seed or 0 for item in inputs(gateway)) == [7, 8, 9]
    # Each is paid for.
    assert answer["usage"]["prompt_tokens"] == 21
    assert answer["usage"]["cost_nano"] == 3 * 540
    assert response.headers["x-capacloud-amount-nano"] == str(3 * 540)


def test_without_a_seed_each_job_has_one_of_its_own(gateway: Harness) -> None:
    gateway.post(PATH, body(n=2))
    assert [item.seed for item in inputs(gateway)] == [None, None]


def test_choices_of_a_stream_are_told_apart(gateway: Harness) -> None:
    gateway.market.script = Script(interval_s=0.001)
    request = body(n=3, stream=True, stream_options={"include_usage": True})
    stream = events(gateway.post(PATH, request))
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    order: list[int] = []
    for event in stream[:-2]:
        (choice,) = event["choices"]
        index = choice["index"]
        texts[index] = texts.get(index, "") + choice["delta"].get("content", "")
        order.append(index)
        if choice["finish_reason"]:
            reasons[index] = choice["finish_reason"]
    assert texts == dict.fromkeys(range(3), ANSWER)
    assert reasons == dict.fromkeys(range(3), "stop")
    assert order != sorted(order), "the choices are interleaved"
    assert stream[-2]["usage"]["completion_tokens"] == 15
    assert len({event["id"] for event in stream[:-1]}) == 1


def test_a_choice_that_fails_leaves_the_others(gateway: Harness) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, amount_nano=5_000)
    gateway.market.script = Script(failure=failure, failure_after=2, failing_job=1)
    for stream in (False, True):
        gateway.market.specs.clear()
        response = gateway.post(PATH, body(n=3, stream=stream))
        assert response.status_code == 200
        if stream:
            last = [
                event["choices"][0]
                for event in events(response)[:-1]
                if event["choices"][0]["finish_reason"]
            ]
            assert events(response)[-1] == "[DONE]"
        else:
            last = response.json()["choices"]
        reasons = [choice["finish_reason"] for choice in sorted(last, key=lambda c: c["index"])]
        assert sorted(reasons) == ["error", "stop", "stop"]
        (failed,) = [choice for choice in last if choice["finish_reason"] == "error"]
        assert failed["error"]["code"] == "node_lost"
        assert "charged" in failed["error"]["message"]


def test_where_all_choices_fail_the_request_does(gateway: Harness) -> None:
    gateway.market.script = Script(failure=JobFailed("busy", code=Code.BUSY))
    for stream in (False, True):
        response = gateway.post(PATH, body(n=3, stream=stream))
        assert response.status_code == 429
        assert error_of(response)["code"] == "busy"


def test_a_model_of_another_task_is_refused_before_any_choice_is_bought(gateway: Harness) -> None:
    assert gateway.post(PATH, body(n=3, model="tiny-embedder")).status_code == 400
    assert gateway.market.specs == []


def test_prompts_of_a_list_are_answered_in_order(gateway: Harness) -> None:
    response = gateway.post(COMPLETIONS, completion(prompt=["a", [1, 2], "c"], n=2, seed=1))
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    asked_for = {(item.prompt, item.prompt_tokens, item.seed) for item in inputs(gateway)}
    assert asked_for == {
        (prompt, tokens, seed)
        for prompt, tokens in (("a", ()), (None, (1, 2)), ("c", ()))
        for seed in (1, 2)
    }


def test_no_more_than_eight_jobs_of_a_request_run_at_once(gateway: Harness) -> None:
    gateway.market.script = Script(interval_s=0.001)
    response = gateway.post(COMPLETIONS, completion(prompt=["a"] * 20, stream=True))
    ended = [
        choice["index"]
        for event in events(response)[:-1]
        for choice in event["choices"]
        if choice["finish_reason"]
    ]
    assert sorted(ended) == list(range(20))
    assert gateway.market.most_at_once == 8


def test_scores_of_a_chat(gateway: Harness) -> None:
    (choice,) = gateway.post(PATH, body(logprobs=True, top_logprobs=2)).json()["choices"]
    scores = choice["logprobs"]["content"]
    assert [score["token"] for score in scores] == ["Hel", "lo", "", " wörld ", "🙂"]
    assert scores[3]["bytes"] == list(" wörld ".encode())
    assert scores[0]["logprob"] == -0.5
    assert [top["token"] for top in scores[0]["top_logprobs"]] == ["Hel", "\ufffd"]
    # OpenAI's word for never.
    assert scores[0]["top_logprobs"][1] == {"token": "\ufffd", "logprob": -9999, "bytes": [0xF0]}
    assert choice["message"]["content"] == ANSWER


def test_scores_of_a_chats_stream(gateway: Harness) -> None:
    stream = events(gateway.post(PATH, body(logprobs=True, stream=True)))
    choices = [event["choices"][0] for event in stream[:-1]]
    scored = [choice for choice in choices if choice["logprobs"]]
    pairs = [(c["delta"].get("content", ""), c["logprobs"]["content"]) for c in scored]
    assert [text for text, _ in pairs] == ["Hel", "lo", "", " wörld ", "🙂"]
    assert all(len(scores) == 1 for _, scores in pairs)
    assert all(scores[0]["token"] == text for text, scores in pairs)


def test_scores_of_a_completion(gateway: Harness) -> None:
    (choice,) = gateway.post(COMPLETIONS, completion(logprobs=1)).json()["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["Hel", "lo", "", " wörld ", "🙂"]
    assert logprobs["token_logprobs"] == [-0.5] * 5
    assert logprobs["top_logprobs"][0] == {"Hel": -0.5}
    assert logprobs["text_offset"] == [0, 3, 5, 5, 12]


def test_the_prompt_is_echoed(gateway: Harness) -> None:
    (choice,) = gateway.post(COMPLETIONS, completion(echo=True)).json()["choices"]
    assert choice["text"] == "Once upon" + ANSWER
    assert asked(gateway).prompt_logprobs is None
    stream = events(gateway.post(COMPLETIONS, completion(echo=True, stream=True)))
    texts = [event["choices"][0]["text"] for event in stream[:-1]]
    assert texts[0] == "Once upon"
    assert "".join(texts) == "Once upon" + ANSWER


def test_the_prompt_is_echoed_with_its_scores(gateway: Harness) -> None:
    request = completion(prompt="Once upon", echo=True, logprobs=1)
    (choice,) = gateway.post(COMPLETIONS, request).json()["choices"]
    assert asked(gateway).prompt_logprobs == 1
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:3] == ["Once", "upon", "Hel"]
    # Nothing stands before the first token.
    assert logprobs["token_logprobs"][:2] == [None, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"upon": -0.5}]
    assert logprobs["text_offset"][:3] == [0, 4, 8]
    stream = events(gateway.post(COMPLETIONS, request | {"stream": True}))
    parts = [event["choices"][0]["logprobs"] for event in stream[:-1]]
    joined = [token for part in parts if part for token in part["tokens"]]
    assert joined == logprobs["tokens"]


def test_token_ids_are_echoed_as_the_model_spells_them(gateway: Harness) -> None:
    (choice,) = gateway.post(COMPLETIONS, completion(prompt=[1, 2], echo=True)).json()["choices"]
    assert choice["text"] == "ab" + ANSWER
    assert choice["logprobs"] is None


def test_usage_in_every_event(gateway: Harness) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = events(gateway.post(PATH, body(stream=True, stream_options=options)))
    counts = [event["usage"]["completion_tokens"] for event in stream[1:-1]]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert stream[-2]["usage"]["prompt_tokens"] == 7
