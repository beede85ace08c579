"""The openai engine: what it promises beyond the contract of every engine.

Covered: everything a server or the way to it can do wrong, several servers, what is sent, the key,
the canary, the checks before a run; by `servers.FakeServer` and a proxy. Not covered: a real
server (test_openai_vllm.py).
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import BASE, STUDENT, FakeServer, FaultProxy, hash_words
from vllm_eval.config.layers import load_config
from vllm_eval.engines import open_engine
from vllm_eval.errors import ConfigError, EngineDiedError, EngineError
from vllm_eval.inputs.plan import prepare
from vllm_eval.records import BASELINE, Completion, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run
    from vllm_eval.engines.protocol import Engine

ARMS = (BASELINE, STUDENT)
START = dict[str, Any]


class Desk:
    """Servers and engines of one test; all are closed at its end, the engines first.

    The HTTP client leaves connections open that a server has cut, if a request is cancelled while
    it closes them.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.log = bench.folder / "engine.log"
        self._open: list[Callable[[], None]] = []

    def server(self, **fields: Any) -> FakeServer:
        made = FakeServer(**fields)
        self._open.append(made.loopback.stop)
        return made

    def proxy(self, target: FakeServer, *faults: Any, again: str = "pass") -> FaultProxy:
        """Before `target`: these faults one after the other, then `again` for ever."""
        planned = [*faults]
        return self.proxy_by(target, lambda n, _: planned[n] if n < len(planned) else again)

    def proxy_by(self, target: FakeServer, fault: Callable[..., Any]) -> FaultProxy:
        """Before `target`: the fault for the number and the body of a request."""
        made = FaultProxy(target.url, fault)
        self._open.append(made.loopback.stop)
        return made

    def flags(self, *servers: FakeServer | FaultProxy, **more: Any) -> dict[str, Any]:
        if not self.bench.cases.exists():
            self.bench.dataset()
        urls = [server.url for server in servers]
        return {
            "engine": "openai",
            "profile": "none",
            "base_url": urls,
            "adapters": [STUDENT],
            "dataset_path": str(self.bench.cases),
            "server_patience_s": 10.0,
        } | more

    def engine(self, *servers: FakeServer | FaultProxy, **more: Any) -> Engine:
        config = load_config(flags=self.flags(*servers, **more))
        plan = prepare(config)
        opened = open_engine(config, plan.arms, plan.base_model, self.log)
        self._open.insert(0, opened.close)
        return opened

    def run(self, server: FakeServer | FaultProxy, *more: str) -> Run:
        """The whole program against one server."""
        if not self.bench.cases.exists():
            self.bench.dataset(3)
        return self.bench.call(
            *("--engine", "openai", "--base-url", server.url, "--adapter", STUDENT),
            *("--dataset-path", str(self.bench.cases), "--profile", "none", "--no-report"),
            *("--output-dir", str(self.bench.output_dir), "-c", "server_patience_s=10"),
            *more,
        )

    def close(self) -> None:
        for close in self._open:
            close()


@pytest.fixture
def desk(bench: Bench) -> Iterator[Desk]:
    made = Desk(bench)
    yield made
    made.close()


def ask(number: int, arm: str = BASELINE, prompt: str = "Concept: a portal") -> Request:
    return Request(f"{arm}/{number}", arm, str(number), 0, 1, prompt, seed=100 + number)


def drain(engine: Engine) -> dict[str, Completion]:
    found: dict[str, Completion] = {}
    while engine.busy:
        found |= {done.request_id: done for done in engine.poll()}
    return found


def expected(*requests: Request) -> dict[str, str]:
    """What the server answers by its own rule."""
    names = {BASELINE: BASE, STUDENT: STUDENT}
    return {
        request.id: hash_words(
            {
                "model": names[request.arm],
                "seed": request.seed,
                "temperature": 0.2,
                "prompt": request.prompt,
            }
        )
        for request in requests
    }


MANY = [ask(number, arm) for number in range(10) for arm in ARMS]


@pytest.mark.parametrize("fault", ["busy", "later", "broken", "slow", "cut", "drop", "garbage"])
def test_a_fault_costs_time_and_nothing_else(desk: Desk, fault: str) -> None:
    server = desk.server()
    # The canary's own streamed requests are the first two.
    proxy = desk.proxy(server, "pass", "pass", *itertools.repeat(fault, 6))
    engine = desk.engine(proxy, request_timeout_s=5.0)
    engine.submit(MANY)
    found = drain(engine)
    assert {name: done.text for name, done in found.items()} == expected(*MANY)
    assert all(done.error is None for done in found.values())
    assert engine.about["sent_again"] == (0 if fault == "slow" else 6)


def test_an_answer_that_takes_too_long_is_asked_for_again(desk: Desk) -> None:
    proxy = desk.proxy(desk.server(), "pass", "pass", "slow")
    proxy.seconds = 3.0
    engine = desk.engine(proxy, request_timeout_s=0.5)
    engine.submit([ask(1)])
    assert drain(engine)[f"{BASELINE}/1"].error is None
    assert engine.about["sent_again_timeout"] == 1


def test_the_time_a_server_asks_for_is_kept(desk: Desk) -> None:
    """`later` asks for 0.2 s, more than twice the longest first pause of our own schedule."""
    engine = desk.engine(desk.proxy(desk.server(seconds=0.0), "pass", "pass", "later", "later"))
    begin = time.monotonic()
    engine.submit([ask(1)])
    done = drain(engine)[f"{BASELINE}/1"]
    assert time.monotonic() - begin >= 0.4
    assert done.queued_s >= 0.4
    assert done.ttft_s >= done.queued_s


def test_the_limit_follows_what_the_server_takes(desk: Desk) -> None:
    """A server with room for 8: it is soon asked for little more, and it is kept busy."""
    server = desk.server(room=8, seconds=0.05)
    engine = desk.engine(server)
    waiting, found = [ask(number) for number in range(160)], 0
    capacities = []
    in_flight = 0
    while waiting or engine.busy:
        room = max(0, engine.capacity - in_flight)
        engine.submit(waiting[:room])
        in_flight += len(waiting[:room])
        del waiting[:room]
        finished = engine.poll()
        in_flight -= len(finished)
        found += len(finished)
        capacities.append(engine.capacity)
    assert found == 160
    assert server.busiest == 8
    late = capacities[len(capacities) // 2 :]
    assert 4 <= sum(late) / len(late) <= 24  # on a busy machine it is noticed late
    assert server.turned_away < 100


def test_a_server_that_takes_everything_is_given_more_and_more(desk: Desk) -> None:
    server = desk.server(seconds=0.6)
    engine = desk.engine(server, max_concurrency=48)
    before = engine.capacity
    engine.submit([ask(number) for number in range(100)])
    drain(engine)
    assert before < engine.capacity == 49
    assert before <= server.busiest <= 48


def test_a_request_that_alone_fails_comes_back_with_an_error(desk: Desk) -> None:
    server = desk.server()
    proxy = desk.proxy_by(server, lambda _, body: "broken" if body["seed"] == 107 else "pass")
    engine = desk.engine(proxy)
    found: dict[str, Completion] = {}
    engine.submit([ask(7)])
    for number in itertools.count(1000):  # others go on being answered
        engine.submit([ask(number)])
        found |= {done.request_id: done for done in engine.poll()}
        if f"{BASELINE}/7" in found:
            break
        time.sleep(0.1)
    assert "failed 5 times while the server answered others: 500" in str(
        found[f"{BASELINE}/7"].error
    )
    assert all(done.error is None for name, done in found.items() if name != f"{BASELINE}/7")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("filter", "the server accepts the key but forbids the request: 403"),
        ("absent", "failed 5 times while the server answered others: 404"),
        ("broken", "but the server works: 500"),
    ],
)
def test_a_request_that_fails_as_the_last_one_open_ends_nothing(
    desk: Desk, fault: str, words: str
) -> None:
    server = desk.server()
    proxy = desk.proxy_by(server, lambda _, body: fault if body["seed"] == 107 else "pass")
    engine = desk.engine(proxy, server_patience_s=1.5)
    engine.submit([ask(7)])
    assert words in str(drain(engine)[f"{BASELINE}/7"].error)
    engine.submit([ask(1), ask(2, STUDENT)])
    assert all(done.error is None for done in drain(engine).values())


def test_a_key_that_is_taken_no_longer_is_no_requests_failure(desk: Desk) -> None:
    engine = desk.engine(desk.proxy(desk.server(), "pass", "pass", again="filter"))
    engine.submit(MANY)
    with pytest.raises(EngineError, match="it no longer accepts the key"):
        drain(engine)


def test_pings_are_no_answer(desk: Desk) -> None:
    engine = desk.engine(desk.proxy(desk.server(), "pass", "pass", "pings"), request_timeout_s=0.5)
    engine.submit([ask(1)])
    assert drain(engine)[f"{BASELINE}/1"].error is None
    assert engine.about["sent_again_timeout"] == 1


def test_an_answer_ends_where_the_server_says_so(desk: Desk) -> None:
    """The body goes on, with comments, and never ends."""
    engine = desk.engine(desk.proxy(desk.server(), "pass", "pass", "open"))
    engine.submit([ask(1)])
    (done,) = engine.poll(5.0)
    assert {done.request_id: done.text} == expected(ask(1))


def test_what_the_server_refuses_is_not_asked_twice(desk: Desk) -> None:
    proxy = desk.proxy(desk.server(), "pass", "pass", "endless")
    engine = desk.engine(proxy, max_new_tokens=10)
    engine.submit([ask(1), ask(2)])
    errors = [done.error for done in drain(engine).values() if done.error]
    assert errors == ["the server refuses it: the server sends more than max_tokens allows"]
    assert len(proxy.seen) == 4


def test_several_servers_share_the_work(desk: Desk) -> None:
    servers = [desk.server(seconds=0.05) for _ in range(3)]
    engine = desk.engine(*servers)
    before = [len(server.bodies) for server in servers]
    engine.submit(MANY)
    drain(engine)
    shares = [len(server.bodies) - n for server, n in zip(servers, before, strict=True)]
    assert sum(shares) == len(MANY)
    assert min(shares) >= 5


def test_a_dead_server_is_left_out_and_taken_back(desk: Desk) -> None:
    first, second = desk.server(seconds=0.05), desk.server(seconds=0.05)
    engine = desk.engine(first, second)
    engine.submit(MANY)
    first.loopback.stop()
    assert {name: done.text for name, done in drain(engine).items()} == expected(*MANY)
    first.loopback.start()
    before, end = len(first.bodies), time.monotonic() + 8
    while len(first.bodies) < before + 10 and time.monotonic() < end:
        engine.submit(MANY)
        drain(engine)
    assert len(first.bodies) >= before + 10
    log = desk.log.read_text("utf-8")
    assert f"{first.url}: out of service" in log
    assert log.count(f"{first.url}: in service") == 2


@pytest.mark.parametrize("fault", ["broken", "busy", "at once"])
def test_a_server_that_fails_at_once_does_not_draw_the_work_to_itself(
    desk: Desk, fault: str
) -> None:
    sick = desk.proxy(desk.server(), "pass", "pass", again=fault)
    engine = desk.engine(sick, desk.server(seconds=0.1), max_concurrency=2)
    engine.submit(MANY)
    assert {name: done.text for name, done in drain(engine).items()} == expected(*MANY)
    assert len(sick.seen) < 2 + len(MANY)


def test_a_server_that_is_gone_for_good_ends_the_engine(desk: Desk) -> None:
    server = desk.server()
    engine = desk.engine(server, server_patience_s=0.5)
    server.loopback.stop()
    engine.submit([ask(1)])
    with pytest.raises(EngineDiedError, match=r"no answer for 0\.5 s \(server_patience_s\)"):
        drain(engine)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_is_starting_anew_may_answer_anything(desk: Desk, status: int) -> None:
    server = desk.server()
    engine = desk.engine(server)
    server.loopback.stop()
    server.status = status
    engine.submit([ask(1)])
    assert engine.poll(0.2) == []
    server.loopback.start()
    assert engine.poll(0.5) == []
    server.status = None
    assert drain(engine)[f"{BASELINE}/1"].error is None


def test_a_server_that_is_gone_ends_nothing_while_another_one_is_well(desk: Desk) -> None:
    here, gone = desk.server(), desk.server()
    engine = desk.engine(here, gone, server_patience_s=0.5)
    gone.loopback.stop()
    here.seconds = 2.0
    engine.submit(MANY)
    assert {name: done.text for name, done in drain(engine).items()} == expected(*MANY)


def test_one_of_two_servers_may_be_away_at_the_start(desk: Desk) -> None:
    here, away = desk.server(), desk.server()
    away.loopback.stop()
    engine = desk.engine(here, away)
    engine.submit(MANY)
    assert len(drain(engine)) == len(MANY)


def test_another_release_may_not_join(desk: Desk) -> None:
    with pytest.raises(EngineError, match="begun with"):
        desk.engine(desk.server(), desk.server(version="0.33.0"))


def test_everything_that_decides_an_answer_is_sent(desk: Desk) -> None:
    server = desk.server()
    more = {"temperature": 0.7, "top_p": 0.6, "max_new_tokens": 33, "ignore_eos": True}
    engine = desk.engine(server, **more)
    engine.submit([ask(5, STUDENT)])
    drain(engine)
    sent = server.bodies[-1]
    assert (sent["model"], sent["prompt"], sent["seed"]) == (STUDENT, "Concept: a portal", 105)
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.7, 0.6, 33)
    assert (sent["ignore_eos"], sent["min_tokens"]) == (True, 33)
    # What a model's generation_config.json may set on the server, and never sets in-process.
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (0, 0.0, 1.0)
    assert (sent["presence_penalty"], sent["frequency_penalty"]) == (0.0, 0.0)


def test_another_server_than_vllm_is_sent_nothing_of_its_own(desk: Desk) -> None:
    server = desk.server(version=None)
    engine = desk.engine(server, ignore_eos=True)
    engine.submit([ask(5)])
    drain(engine)
    assert server.bodies[-1].keys().isdisjoint({"top_k", "ignore_eos", "min_tokens"})
    assert engine.about["vllm"] == "unknown"


def test_a_server_that_cannot_say_its_release_now_is_asked_again(desk: Desk) -> None:
    engine = desk.engine(desk.server(version_fails=1))
    assert engine.about["vllm"] == "0.32.0"


def test_chat_prompts_go_to_the_chat_route(desk: Desk) -> None:
    server = desk.server()
    engine = desk.engine(server, prompt_format="chat")
    engine.submit([ask(1)])
    done = drain(engine)[f"{BASELINE}/1"]
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Concept: a portal"}]
    assert (len(done.text.split()), done.output_tokens, done.finish_reason) == (2, 2, "stop")


def test_arguments_of_the_chat_template_go_with_every_request(desk: Desk) -> None:
    server = desk.server()
    given = {"enable_thinking": False}
    engine = desk.engine(server, prompt_format="chat", chat_template_kwargs=given)
    engine.submit([ask(1)])
    drain(engine)
    assert all(body["chat_template_kwargs"] == given for body in server.bodies)


@pytest.mark.parametrize("first", ["<s>", None])
@pytest.mark.parametrize("prompt", ["<s> Concept: a portal", "Concept: a portal"])
def test_a_prompt_that_begins_as_the_server_begins_every_one_is_given_no_second_beginning(
    desk: Desk, first: str | None, prompt: str
) -> None:
    server = desk.server(first=first)
    engine = desk.engine(server)
    engine.submit([ask(1, prompt=prompt)])
    drain(engine)
    doubled = first is not None and prompt.startswith(first)
    assert server.bodies[-1].get("add_special_tokens", True) is not doubled


def test_a_prompt_that_may_be_too_long_is_counted_as_it_is_asked(desk: Desk) -> None:
    engine = desk.engine(desk.server(first="<s>"), max_new_tokens=72)
    assert engine.refusal("<s> " + "a " * 2999) is None
    assert "3001 tokens" in str(engine.refusal("<s> " + "a " * 3000))


def test_a_limit_of_the_server_s_own_is_not_blamed_on_the_prompt(desk: Desk) -> None:
    """As vLLM has one from a generation_config.json with max_new_tokens."""
    server = desk.server(answer=lambda body: "word " * 39 + "word", cut=30)
    engine = desk.engine(server, max_new_tokens=40)
    engine.submit([ask(1)])
    (done,) = drain(engine).values()
    assert "at 30 of 40 tokens, by a limit of its own" in str(done.error)
    assert "--generation-config vllm" in str(done.error)


def test_an_answer_the_server_truncated_is_not_the_models_failure(desk: Desk) -> None:
    """vLLM gives what room is left, in silence. Another arm's model may have more room."""
    server = desk.server(answer=lambda body: "word " * 500, version=None)
    engine = desk.engine(server, max_new_tokens=400)
    prompt = "a " * 2700
    engine.submit([ask(1, prompt=prompt)])
    (done,) = drain(engine).values()
    assert "2700 tokens leave room for 372 of 400" in str(done.error)
    assert engine.refusal(prompt) is None
    engine.submit([ask(1, STUDENT, prompt)])
    drain(engine)
    assert engine.refusal(prompt) == done.error


def test_an_adapter_is_loaded_where_the_server_allows_it(desk: Desk) -> None:
    server = desk.server(models={BASE: None}, loads=True)
    engine = desk.engine(server, load_adapters=True)
    assert {"lora_name": STUDENT, "lora_path": STUDENT} in server.bodies
    engine.submit([ask(1, STUDENT)])
    assert drain(engine)[f"{STUDENT}/1"].error is None


def test_an_adapter_is_loaded_under_the_name_it_is_asked_by(desk: Desk) -> None:
    server = desk.server(models={BASE: None}, loads=True)
    names = {STUDENT: "team/v7"}
    engine = desk.engine(server, load_adapters=True, served_models=names)
    assert engine.about["models"] == "baseline=base, pupil=team/v7"


def test_an_adapter_lost_in_a_restart_is_loaded_again(desk: Desk) -> None:
    server = desk.server(models={BASE: None}, loads=True)
    engine = desk.engine(server, load_adapters=True)
    del server.models[STUDENT]
    engine.submit(MANY)
    assert {name: done.text for name, done in drain(engine).items()} == expected(*MANY)


@pytest.mark.parametrize(
    ("fields", "more", "message"),
    [
        ({"models": {BASE: None}}, {}, "serves no model 'pupil' .*--lora-modules pupil=PATH"),
        ({"models": {BASE: None}}, {"load_adapters": True}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"models": {"a": None, "b": None, STUDENT: None}}, {}, "served_models.baseline=NAME"),
        ({"same": True}, {}, "canary: adapter 'pupil' changes nothing"),
        (
            {"log_probabilities": False, "answer": lambda body: "the same"},
            {},
            "canary: adapter 'pupil' changes nothing",
        ),
        ({"key": "secret"}, {}, "wrong key.*set VLLM_API_KEY"),
    ],
)
def test_a_server_that_does_not_serve_the_arms_is_refused(
    desk: Desk, fields: START, more: START, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        desk.engine(desk.server(**fields), **more)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
@pytest.mark.parametrize(
    "body", ["", "{", "7", "[1]", '"x"', '{"data": [1, 2]}', '{"data": [{}]}', '{"choices": [1]}']
)
def test_what_is_no_answer_is_no_crash(desk: Desk, path: str, body: str) -> None:
    """Without log probabilities the canary goes by the texts; without a list there is no start."""
    server = desk.server(odd={path: body})
    try:
        engine = desk.engine(server, server_patience_s=0.1)
    except EngineError as error:
        assert server.url in str(error)  # noqa: PT017  either end is right, a traceback is not
    else:
        assert engine.about["canary"] == "texts"


def test_a_canary_that_is_too_much_at_a_time_goes_on_one_by_one(desk: Desk) -> None:
    engine = desk.engine(desk.server(log_probabilities=False, room=2))
    assert engine.about["canary"] == "texts"


def test_texts_tell_the_arms_apart_where_there_are_no_log_probabilities(desk: Desk) -> None:
    engine = desk.engine(desk.server(log_probabilities=False))
    assert engine.about["canary"] == "texts"


def test_an_adapter_hardly_told_from_the_base_is_a_warning_of_the_run_and_in_its_files(
    desk: Desk,
) -> None:
    """Two of the canary's texts are answered apart, six alike."""
    server = desk.server(
        log_probabilities=False,
        answer=lambda body: body["model"] if "portal" in str(body["prompt"]) else "the same",
    )
    run = desk.run(server, "--retries", "0")
    (line,) = (line for line in run.out.splitlines() if line.startswith("warning  canary: "))
    assert "'pupil' too weak to be told from the base" in line
    comparison = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    assert line == f"warning  {comparison['environment']['engine']['canary_warning']}"


def test_models_may_have_any_names(desk: Desk) -> None:
    server = desk.server(models={"org/base": None, "other": None, "team/v7": None})
    names = {BASELINE: "org/base", STUDENT: "team/v7"}
    engine = desk.engine(server, served_models=names)
    assert engine.about["models"] == "baseline=org/base, pupil=team/v7"


def outcomes(run: Run) -> list[tuple[Any, ...]]:
    keys = ("arm", "concept_id", "attempt", "status", "seed", "score", "raw_response")
    return sorted(tuple(line[key] for key in keys) for line in run.journal)


def test_a_run_through_faults_ends_as_one_without(desk: Desk, answers: Answers) -> None:
    """Format retries are attempts; what had to be sent again is counted apart from them."""
    server = desk.server(
        answer=lambda body: answers.text() if int(body["seed"]) % 3 else answers.bad()
    )
    quiet = desk.run(server)
    desk.bench.output_dir = desk.bench.folder / "loud"
    loud = desk.run(desk.proxy(server, "pass", "pass", *("busy", "cut", "drop", "broken") * 2))
    assert outcomes(loud) == outcomes(quiet)
    assert loud.code == quiet.code
    assert any(line["attempt"] > 1 for line in loud.journal)
    comparison = json.loads((loud.folder / "comparison.json").read_text("utf-8"))
    engine = comparison["environment"]["engine"]
    assert (engine["sent_again"], engine["sent_again_busy"], engine["sent_again_lost"]) == (8, 2, 4)


def test_a_run_whose_server_is_gone_is_resumed_on_the_same_release(
    desk: Desk, answers: Answers
) -> None:
    gone = threading.Event()

    def answer(body: Any) -> str:
        if len(server.bodies) > 6 and not gone.is_set():
            gone.set()
            threading.Thread(target=server.loopback.stop).start()
        return answers.text()

    server = desk.server(answer=answer)
    begun = desk.run(server, *("-c", "server_patience_s=0.4", "-c", "max_engine_restarts=0"))
    assert begun.code == 3
    assert "--resume" in begun.err
    server.loopback.start()
    server.version = "0.33.0"
    refused = desk.run(server, "--resume", str(begun.folder))
    assert refused.code == 2
    assert "begun with vllm '0.32.0', not '0.33.0'" in refused.err
    server.version = "0.32.0"
    ended = desk.run(server, "--resume", str(begun.folder))
    assert ended.code in (0, 1)
    keys = [(line["arm"], line["concept_id"]) for line in ended.journal]
    assert sorted(keys) == sorted(itertools.product(ARMS, ("K1", "K2", "K3")))


def test_the_key_comes_from_the_environment_and_is_stored_nowhere(
    desk: Desk, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-7")
    run = desk.run(desk.server(key="secret-7", answer=lambda body: answers.text()))
    assert run.code in (0, 1)
    assert [p for p in run.folder.rglob("*") if b"secret-7" in p.read_bytes()] == []


def test_a_refused_key_is_not_repeated(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-8")
    run = desk.run(desk.server(key="another"))
    assert run.code == 2
    assert "wrong key: Bearer ***" in run.err
    assert "secret-8" not in run.err + run.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "openai"), "base_url: the openai engine needs a server"),
        (("--base-url", "http://127.0.0.1:9/v1"), "names servers, but the engine is vllm"),
        (("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1"), "does not answer"),
        (("--engine", "openai", "--base-url", "http://me:word@host/v1"), "base_url"),
    ],
)
def test_the_check_names_what_is_wrong_with_a_server(
    bench: Bench, arguments: tuple[str, ...], message: str
) -> None:
    bench.dataset()
    more = ("--adapter", STUDENT, "--dataset-path", str(bench.cases), "--profile", "none")
    run = bench.call("check", *arguments, *more, "--output-dir", str(bench.output_dir))
    assert run.code == 2
    assert message in run.out + run.err


def test_the_check_lists_what_a_server_serves(desk: Desk) -> None:
    run = desk.bench.call("check", *desk_arguments(desk, desk.server()))
    assert run.code == 0
    assert "lists base, pupil" in run.out


def desk_arguments(desk: Desk, server: FakeServer) -> list[str]:
    flags = desk.flags(server)
    return [
        *("--engine", "openai", "--base-url", server.url, "--adapter", STUDENT),
        *("--dataset-path", flags["dataset_path"], "--profile", "none"),
        *("--output-dir", str(desk.bench.output_dir)),
    ]


def test_without_a_server_there_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --base-url"):
        open_engine(load_config(flags={"engine": "openai"}), (), None, tmp_path / "engine.log")
