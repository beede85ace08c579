"""The ray engine on clusters of several nodes, all of them on this machine.

Covered: same outcomes as one engine, lost nodes and processes, hand-out, placement, what `check`
says. The replicas answer from a script, but for the last tests. Not covered: GPUs, several
machines.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.conftest import Run
from vllm_eval.config.layers import load_config
from vllm_eval.engines import open_engine
from vllm_eval.engines.ray.replica import Seat, Started, room, share_out
from vllm_eval.records import BASELINE, Arm, Completion, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Answers, Bench
    from vllm_eval.engines.protocol import Engine

# Ray's own files and sockets are still open when it is shut down.
pytestmark = pytest.mark.filterwarnings("ignore")


def ask(number: int) -> Request:
    return Request(f"R{number}", "baseline", f"R{number}", 0, 1, "Concept: a portal", seed=7)


def seat(number: int, capacity: int) -> Seat:
    return Seat(number, None, started=Started(capacity, {"engine": "scripted"}, "here"))


# -- who gets a request


def test_replicas_are_filled_by_the_share_of_their_room() -> None:
    small, large = seat(0, 10), seat(1, 30)
    share_out(deque(map(ask, range(20))), [small, large])
    assert (len(small.held), len(large.held)) == (5, 15)


def test_what_no_replica_has_room_for_waits() -> None:
    queue, only = deque(map(ask, range(9))), seat(0, 4)
    share_out(queue, [only])
    assert [request.id for request in queue] == ["R4", "R5", "R6", "R7", "R8"]


def test_a_slow_replica_gets_less() -> None:
    slow, quick = seat(0, 4), seat(1, 4)
    queue = deque(map(ask, range(20)))
    share_out(queue, [slow, quick])
    for _ in range(3):  # one answers all it has while the other answers nothing
        quick.held.clear()
        share_out(queue, [slow, quick])
    assert len(slow.held) == 4
    assert not queue


def test_requests_of_a_lost_replica_come_before_those_that_wait() -> None:
    queue, lost = deque(map(ask, range(4))), seat(0, 2)
    share_out(queue, [lost])
    lost.give_back(queue)
    assert [request.id for request in queue] == ["R0", "R1", "R2", "R3"]
    assert lost.load == 1.0


def test_an_answer_to_what_a_replica_no_longer_holds_is_dropped() -> None:
    holder = seat(0, 2)
    share_out(deque([ask(1)]), [holder])
    late, due = Completion("R0", text="late"), Completion("R1", text="due")
    assert holder.answered([late, due]) == [due]
    assert holder.answered([due]) == []


# -- how many there are


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "gpus", "expected"),
    [
        ([node(CPU=8), node(CPU=8)], 2, (0, 2)),
        ([node(CPU=8, GPU=8), node(CPU=8, GPU=3)], 2, (2, 5)),
        ([node(CPU=8, GPU=1), node(CPU=8, GPU=1)], 2, (2, 0)),
        ([node(CPU=8, GPU=4), node(CPU=64)], 1, (1, 4)),
        ([node(CPU=8, GPU=4), node(alive=False, CPU=8, GPU=4)], 1, (1, 4)),
        ([node(CPU=2, GPU=4)], 1, (1, 2)),
    ],
    ids=["no GPUs", "uneven", "split over nodes", "a head without", "a dead node", "few CPUs"],
)
def test_a_replica_lies_within_one_node(
    nodes: list[dict[str, Any]], gpus: int, expected: tuple[int, int]
) -> None:
    assert room(nodes, gpus) == expected


# -- clusters


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of a head and one more node, one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def replicas(title: str) -> list[psutil.Process]:
    """Processes below this one by their title, in which Ray says what they are at."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def during(output_dir: Path, attempts: int, what: Callable[[], object]) -> threading.Thread:
    """Do something once all replicas are open and so many attempts are in the journal."""

    def watch() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            journals = list(output_dir.glob("*/attempts.jsonl"))
            enough = journals and journals[0].read_bytes().count(b"\n") >= attempts
            if enough and not replicas("Replica.open"):
                what()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def outcomes(journal: list[dict[str, Any]]) -> dict[tuple[str, str, int, int], Any]:
    """What each attempt came to; fails where one is there twice."""
    keys = [(a["arm"], a["concept_id"], a["sample"], a["attempt"]) for a in journal]
    assert max(Counter(keys).values()) == 1
    told = [(a["status"], a["raw_response"], a["score"], a["final"]) for a in journal]
    return dict(zip(keys, told, strict=True))


def script(bench: Bench, answers: Answers) -> None:
    """Sixty cases, of which every arm fails a first attempt now and then."""
    bench.dataset(60)
    lines: list[dict[str, object]] = [{"text": answers.text(), "seconds": 0.5}]
    lines += [
        {"concept_id": f"K{n}", "attempt": 1, "text": answers.bad(), "seconds": 0.1}
        for n in range(1, 60, 7)
    ]
    bench.answers(*lines)


def told(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "manifest.json").read_text())["engine"]
    return found


@pytest.mark.deep
def test_a_node_killed_mid_run_costs_no_outcome(
    bench: Bench, answers: Answers, nodes: Any, tmp_path: Path
) -> None:
    script(bench, answers)
    alone = bench.run()
    expected = outcomes(alone.journal)
    bench.output_dir = tmp_path / "cluster"
    # Enough answers that the node dies before the last of them, however slow Ray is to tell.
    asked = ("--engine", "ray", "--ray-address", nodes.address, "--samples-per-case", "40")
    kill = during(
        bench.output_dir, 300, lambda: nodes.remove_node(nodes.second, allow_graceful=False)
    )
    run = bench.run(*asked)
    kill.join(60)
    assert run.code == alone.code, run.err
    found = outcomes(run.journal)
    assert {key: value for key, value in found.items() if key[2] == 0} == expected
    assert len(found) == 40 * len(expected)
    assert told(run)["replicas_lost"] == 1


@pytest.mark.deep
def test_a_replica_whose_process_is_killed_is_started_again(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    script(bench, answers)
    asked = ("--engine", "ray", "--replicas", "1", "--samples-per-case", "12")
    kill = during(bench.output_dir, 300, kill_replicas)
    run = bench.run(*asked)
    kill.join(60)
    assert run.code == 0, run.err
    assert len({key[:3] for key in outcomes(run.journal)}) == 60 * 2 * 12
    assert (told(run)["replicas"], told(run)["replicas_lost"]) == (1, 1)
    assert "dead" not in run.err


def kill_replicas() -> None:
    """As the kernel does it, where memory runs out."""
    for process in replicas("Replica"):
        process.send_signal(signal.SIGKILL)


def test_no_room_on_any_node_is_said_at_the_start(bench: Bench, answers: Answers) -> None:
    from ray.cluster_utils import Cluster

    bench.dataset(1)
    bench.answers({"text": answers.text()})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        asked = ("--ray-address", cluster.address, "--tensor-parallel-size", "2")
        run = bench.run("--engine", "ray", *asked)
    finally:
        cluster.shutdown()
    assert run.code == 3
    assert "no node of the cluster has 2 GPUs and a CPU" in run.err


def test_replicas_that_cannot_open_their_engine_end_the_run_with_its_words(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text(), "seconds": "soon"})
    run = bench.run("--engine", "ray", "--replicas", "1")
    assert run.code == 2
    assert f"{bench.script}, line 1: 'seconds' has the wrong type" in run.err


# -- what `check` says


def test_replicas_without_the_ray_engine_are_an_error(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run("--replicas", "2")
    assert run.code == 2
    assert "the engine is scripted; give --engine ray" in run.err


def test_a_replica_across_nodes_is_an_error(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    across = "engine_args.distributed_executor_backend=ray"
    run = bench.run("--engine", "ray", "-c", across)
    assert run.code == 2
    assert "give --engine vllm for a model across nodes" in run.err


# -- the real engine


@pytest.mark.engine
@pytest.mark.deep
def test_two_replicas_answer_as_one_engine_and_a_killed_node_costs_nothing(
    bench: Bench, nodes: Any, tmp_path: Path
) -> None:
    flags = ["--config", "demo", "--no-report", "--max-samples", "8", "--temperature", "0.2"]
    flags += ["--retries", "0"]
    bench.output_dir = tmp_path / "alone"
    command = [sys.executable, "-m", "vllm_eval", *flags, "--output-dir", str(bench.output_dir)]
    subprocess.run(command, check=False, capture_output=True)
    expected = outcomes(Run(0, "", "", bench.output_dir).journal)
    bench.output_dir = tmp_path / "cluster"
    kill = during(
        bench.output_dir, 3, lambda: nodes.remove_node(nodes.second, allow_graceful=False)
    )
    asked = ("--engine", "ray", "--ray-address", nodes.address, "--max-num-seqs", "4")
    run = bench.call(*flags, *asked, "--output-dir", str(bench.output_dir))
    kill.join(60)
    assert run.code in (0, 1), run.out + run.err  # the gate says what so few first answers come to
    assert told(run)["replicas_lost"] == 1
    assert outcomes(run.journal) == expected


# -- the contract; last, since these replicas stay open until the end of the module


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two scripted replicas on a cluster of this machine, one case of which ends its engine."""
    folder: Path = tmp_path_factory.mktemp("ray")
    lines = [{"concept_id": "*", "text": "one two three", "seconds": 0.05}]
    lines += [{"concept_id": "R13", "text": "at last", "seconds": 0.05, "deaths": 1}]
    lines += [{"concept_id": "R14", "error": "the engine would not"}]
    path = folder / "script.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    flags = {"engine": "ray", "replicas": 2, "script": str(path), "adapters": ["pupil"]}
    config = load_config(flags=flags | {"profile": "none", "max_engine_restarts": 9})
    arms = (Arm(BASELINE), Arm("pupil"))
    engine = open_engine(config, arms, None, folder / "engine.log")
    yield engine
    engine.close()


def drain(engine: Engine) -> list[Completion]:
    found: list[Completion] = []
    while engine.busy:
        found += engine.poll()
    return found


def test_every_request_comes_back_once_under_its_own_id(opened: Engine) -> None:
    requests = [ask(number) for number in range(100, 1700)]
    assert len(requests) > opened.capacity
    opened.submit(requests)
    assert sorted(done.request_id for done in drain(opened)) == sorted(r.id for r in requests)


def test_a_poll_returns_empty_when_its_time_is_up(opened: Engine) -> None:
    opened.submit([ask(1)])
    assert opened.poll(timeout=0.0) == []
    assert opened.busy
    assert len(drain(opened)) == 1


def test_an_idle_engine_is_not_busy_and_polls_empty(opened: Engine) -> None:
    assert not opened.busy
    assert opened.poll() == []


def test_a_failed_request_comes_back_with_its_error(opened: Engine) -> None:
    opened.submit([ask(14), ask(15)])
    errors = {done.request_id: done.error for done in drain(opened)}
    assert errors == {"R14": "the engine would not", "R15": None}


def test_an_engine_that_dies_in_its_replica_is_opened_again(opened: Engine) -> None:
    before = opened.about["replicas_lost"]
    opened.submit([ask(number) for number in range(10, 14)])
    texts = {done.request_id: done.text for done in drain(opened)}
    assert texts == dict.fromkeys(("R10", "R11", "R12"), "one two three") | {"R13": "at last"}
    assert int(opened.about["replicas_lost"]) > int(before)
