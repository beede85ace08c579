"""How many decoding steps a barrier between retry rounds costs, counted without an engine.

Where a step takes as long for few sequences as for many, as on a GPU that reads its weights either
way, time is steps. Lengths and failures are those that `bench` forces (500 to 1,200 tokens, three
attempts, both arms), 60 draws each; a place that becomes free is taken by a retry first, as in our
loop. usage: .venv/bin/python scripts/retry_steps.py
"""

from __future__ import annotations

import heapq
from collections import deque

from vllm_eval.bench.figures import spread
from vllm_eval.bench.trial import Work
from vllm_eval.records import Request


def main() -> None:
    print("cases x 2, at a time, failing, steps with a barrier over without: median, range")
    for cases, places in ((20, 64), (60, 64), (200, 64), (200, 256)):
        for rate in (0.2, 0.3, 0.4):
            draws = (Work(500, 1200, rate, 3, seed) for seed in range(60))
            ratios = [steps(w, cases, places, True) / steps(w, cases, places, False) for w in draws]
            found = spread(ratios)
            words = f"{found.median:.2f}, {found.low:.2f} to {found.high:.2f}"
            print(f"{cases:4}, {places:3}, {rate:.0%}: {words}")


def steps(work: Work, cases: int, places: int, barrier: bool) -> int:
    fresh = deque(ask(str(case), arm, 1) for case in range(cases) for arm in ("base", "student"))
    retries: deque[Request] = deque()
    running: list[tuple[int, str, Request]] = []
    now = 0
    while fresh or retries or running:
        if barrier and not fresh and not running:
            fresh, retries = retries, fresh
        while len(running) < places and (fresh or (retries and not barrier)):
            request = retries.popleft() if retries and not barrier else fresh.popleft()
            heapq.heappush(running, (now + work.length(request), request.id, request))
        now, _, request = heapq.heappop(running)
        if work.fails(request) and request.attempt < work.attempts:
            retries.append(ask(request.case_id, request.arm, request.attempt + 1))
    return now


def ask(case: str, arm: str, attempt: int) -> Request:
    return Request(f"{case}/{arm}/{attempt}", arm, case, 0, attempt, "", 0)


if __name__ == "__main__":
    main()
