"""An endpoint that fails in every way: what is asked of it has a reply with the reason, and in time."""

from __future__ import annotations

import sys
import time

import pytest
from scripted_endpoint import Act, completion, error, says, serving

from r1jax.rewards.judges import chat_models
from r1jax.rewards.judges.chat_models import Endpoint, EndpointConfig, JudgeUnavailableError, Reply
from r1jax.rewards.judges.judge import GroundTruthJudge
from r1jax.types import Example, Status

pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "2 + 3 ="}]
RIGHT = '{"analysis": "same", "correctness": "correct"}'


def endpoint(url: str, **fields) -> Endpoint:
    return Endpoint(EndpointConfig(url, "m", **fields))


def test_what_is_sent_is_the_conversation_with_seed_and_limits():
    with serving(says("5")) as server, endpoint(server.url, max_tokens=7, temperature=0.5) as model:
        assert model.ask([QUESTION], seed=3) == [Reply("5")]
    (sent,) = server.requests
    assert sent == {"model": "m", "messages": QUESTION, "max_tokens": 7, "temperature": 0.5, "seed": 3}


def test_replies_stand_in_the_order_of_the_conversations():
    acts = [Act(completion("slow"), seconds=0.3), says("fast")]
    with serving(*acts) as server, endpoint(server.url, parallel=2) as model:
        conversations = [[{"role": "user", "content": str(i)}] for i in range(6)]
        replies = model.ask(conversations, 0)
    slow = server.requests[0]["messages"][0]["content"]
    assert [reply.text for reply in replies] == ["slow" if str(i) == slow else "fast" for i in range(6)]


def test_server_errors_are_asked_again():
    with serving(error(500), error(503), says("5")) as server, endpoint(server.url, retries=2) as model:
        assert model.ask([QUESTION], 0) == [Reply("5")]
    assert len(server.requests) == 3
    script = error(500, "broken"), error(500, "broken"), says("5")
    with serving(*script) as server, endpoint(server.url, retries=1) as model:
        (reply,) = model.ask([QUESTION], 0)
    assert reply.text is None
    assert "broken" in reply.problem
    assert len(server.requests) == 2


def test_the_time_limit_is_for_the_whole_answer():
    trickling = Act(completion("x" * 500), trickle=0.05)  # a byte comes in time; the whole would take half a minute
    for act in (Act(seconds=30), trickling):
        with serving(act) as server, endpoint(server.url, seconds=0.4, retries=2) as model:
            started = time.monotonic()
            (reply,) = model.ask([QUESTION], 0)
            assert time.monotonic() - started < 2
        assert reply == Reply(None, "no answer within 0.4 s", timed_out=True)


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (Act(b"<html>no API</html>", content_type="text/html"), "no chat completion but '<html>no API</html>'"),
        (Act(b"{not json", content_type="application/json"), "JSONDecodeError"),
        (Act(b'{"choices": []}'), "no chat completion"),
        (Act(b'{"choices": [{"message": null}]}'), "no text"),
        (Act(b"[1]"), "no chat completion"),
        (says(None), "no text; finish_reason is 'stop'"),
        (says('{"correctness": "cor', "length"), "cut after 9 tokens"),
        (error(400, "the prompt is too long"), "the prompt is too long"),
        (error(404, "no such model"), "no such model"),
    ],
)
def test_what_is_no_answer_is_said(act, problem):
    with serving(act) as server, endpoint(server.url, max_tokens=9) as model:
        replies = model.ask([QUESTION, QUESTION], 0)
    for reply in replies:
        assert reply.text is None
        assert not reply.timed_out
        assert problem in reply.problem


def test_a_refused_key_is_said_and_not_shown(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-test")
    act = error(401, "wrong key secret-of-the-test")
    with serving(act) as server, endpoint(server.url, api_key_variable="JUDGE_KEY") as model:
        (reply,) = model.ask([QUESTION], 0)
        with pytest.raises(JudgeUnavailableError, match=r"'m' at http.* the key \(JUDGE_KEY\) is refused") as raised:
            model.check()
    assert server.keys[0] == "Bearer secret-of-the-test"
    for said in (reply.problem, str(raised.value)):
        assert "<key>" in said
        assert "secret-of" not in said


def test_the_check_says_at_the_start_what_is_wrong(monkeypatch):
    with serving(says("y", "length")) as server, endpoint(server.url) as model:
        model.check()
    assert server.requests[0]["max_tokens"] == 1
    nothing = pytest.raises(JudgeUnavailableError, match="cannot be asked: no connection: ConnectionRefused")
    with endpoint(server.url, retries=0) as model, nothing:  # nothing listens there any more
        model.check()
    unknown = pytest.raises(JudgeUnavailableError, match="unknown model m")
    with serving(error(404, "unknown model m")) as server, endpoint(server.url) as model, unknown:
        model.check()
    with pytest.raises(JudgeUnavailableError, match="api_key_variable: the environment variable NOT_THERE is not set"):
        endpoint(server.url, api_key_variable="NOT_THERE")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"r1jax\[judge\]"):
        endpoint(server.url)


def test_an_endpoint_that_dies_leaves_the_rest_ungradable_at_once():
    example = Example("q", "2 + 3 =", "5", "t")
    with serving(says(RIGHT)) as server, endpoint(server.url, retries=1, parallel=4) as model:
        judge = GroundTruthJudge(model, parallel=4)
        before = [judge.submit(f"<answer>{i}</answer>", example).result() for i in range(5)]
        server.die()
        started = time.monotonic()
        futures = [judge.submit(f"<answer>{i}</answer>", example) for i in range(1000)]
        after = [future.result() for future in futures]
        seconds = time.monotonic() - started
        judge.close()
    assert [score.value for score in before] == [1.0] * 5
    assert {score.status for score in after} == {Status.UNGRADABLE}
    assert all(score.reason.startswith("the judge: no connection: ") for score in after)
    assert sum("not asked" in score.reason for score in after) >= 990
    assert seconds < 5


def test_an_endpoint_that_comes_back_is_asked_again(monkeypatch):
    monkeypatch.setattr(chat_models, "DOWN_SECONDS", 0.3)
    with serving(says("5")) as server:
        port = server.server_address[1]
    with endpoint(f"http://127.0.0.1:{port}/v1", retries=0) as model:
        assert model.ask([QUESTION], 0)[0].text is None
        with serving(says("5"), port=port) as server:
            (reply,) = model.ask([QUESTION], 0)
            assert "not asked: for 0.3 s" in reply.problem
            assert not server.requests
            time.sleep(0.35)
            assert model.ask([QUESTION], 0) == [Reply("5")]


def test_an_endpoint_that_hangs_does_not_hold_up_every_question():
    with serving(Act(seconds=30)) as server, endpoint(server.url, seconds=0.2, parallel=4) as model:
        started = time.monotonic()
        replies = model.ask([QUESTION] * 400, 0)
        assert time.monotonic() - started < 3
        assert len(server.requests) <= chat_models.FAILURES + 4
    assert sum(reply.timed_out for reply in replies) == len(server.requests)
    assert all("no answer within 0.2 s" in reply.problem for reply in replies)


def test_settings_that_cannot_be_are_named():
    for fields, message in (
        ({"url": "127.0.0.1:8000"}, "url: '127.0.0.1:8000'; an address that begins with http"),
        ({"model": ""}, "model: is empty"),
        ({"seconds": 0.0}, "seconds: 0.0; more than 0"),
        ({"retries": -1}, "retries: -1; at least 0"),
        ({"parallel": 0}, "parallel: 0; at least 1"),
        ({"temperature": float("nan")}, "temperature: nan; 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            EndpointConfig(**{"url": "http://h/v1", "model": "m", **fields})
