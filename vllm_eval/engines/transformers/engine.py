"""The reference engine: transformers and peft, one batch after the other.

The base is loaded once and serves all arms: a student's adapter is switched on; for the baseline
all are off. `batch_size` 1 answers one case at a time; a larger batch is padded and runs until the
longest answer is done. One thread generates, so that a poll can return when its time is up.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path

from vllm_eval.config.settings import Config
from vllm_eval.engines import canary
from vllm_eval.engines.base_canary import BaseAnswers, own_answers, probabilities
from vllm_eval.engines.engine_log import DIED, OutputToFile, translated
from vllm_eval.engines.tokens import encode, too_long
from vllm_eval.engines.transformers import model
from vllm_eval.engines.transformers.batch import Queued, Watch, answer
from vllm_eval.engines.transformers.model import Loaded, Options
from vllm_eval.errors import EngineError, one_line
from vllm_eval.records import Arm, Completion, Request

REMEDIES = (
    (
        ("out of memory", "can't allocate memory", "not enough memory"),
        "use less memory: --batch-size 1, --max-model-len 2048, --load-4bit",
    ),
    (
        ("file named model.safetensors", "no file named"),
        "only safetensors can be loaded: save the base with safe_serialization=True",
    ),
    (("no kernel image",), "this PyTorch is not built for this GPU: install another build"),
)
"""Parts of a message, and what to do; such a cause would only recur."""


class TransformersEngine:
    """A loaded model with its adapters, and the thread that generates."""

    def __init__(
        self, loaded: Loaded, options: Options, config: Config, output: OutputToFile
    ) -> None:
        self._loaded: Loaded | None = loaded
        self._options, self._config, self._output = options, config, output
        self._unproven: str | None = None
        self._base: BaseAnswers | None = None
        self._rejected: list[Completion] = []
        self._waiting: deque[Queued] = deque()
        self._running: Future[list[Completion]] | None = None
        self._stop = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers")
        given = (config.prompt_format, config.chat_template_kwargs)
        # All arms ask the same prompt, and its length is checked before it is submitted.
        self._token_ids: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=512)(
            lambda prompt: tuple(encode(loaded.tokenizer, prompt, *given))
        )

    @classmethod
    def open(
        cls, config: Config, arms: Sequence[Arm], base_model: str, log: Path
    ) -> TransformersEngine:
        """Load the base model, put every adapter on it and run the canary.

        Raises:
            EngineError: a library is missing, or refuses the model or an adapter.
            ConfigError: an engine option needs vLLM.
        """
        options = model.read_options(config)
        for name, value in config.engine_env.items():
            os.environ.setdefault(name, value)
        with contextlib.ExitStack() as undo:
            output = OutputToFile(log)
            undo.callback(output.restore)
            with _or_say("the engine did not start", output):
                loaded = model.load_base(options, config, base_model)
            asked = canary.batches([arm.name for arm in arms]) if len(arms) > 1 else []
            with _or_say("the canary could not be asked", output):
                # Before there is any adapter: the base must keep answering like this.
                answers = [_next_tokens(loaded, batch) for batch in asked[:1]]
            with _or_say("an adapter cannot be served", output):
                loaded = model.add_adapters(loaded, arms)
            engine = cls(loaded, options, config, output)
            undo.callback(engine.close)
            if config.prompt_format == "chat":
                with _or_say("prompt_format: chat, but the tokenizer has no template", output):
                    engine._token_ids("test")
            with _or_say("the canary could not be asked", output):
                answers += [_next_tokens(loaded, batch) for batch in asked[1:]]
                engine._unproven = canary.prove(asked, answers)
                if asked:
                    engine._base = own_answers(asked, answers, probabilities(canary.TOP_TOKENS))
            undo.pop_all()
            return engine

    @property
    def capacity(self) -> int:
        """Two full batches per arm, so that the next batch is always full."""
        return 2 * self._config.batch_size * len(self._model.adapters)

    @property
    def about(self) -> Mapping[str, str | int]:
        """Versions and the settings that decide what is measured."""
        import peft
        import torch
        import transformers

        loaded = self._model.model
        return {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "quantization": self._model.quantization,
            "max_model_len": self._model.max_len,
            "batch_size": self._config.batch_size,
            "ignored": ", ".join(self._options.ignored) or "none",
        } | canary.note(self._unproven)

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """What the bare base answered the canary."""
        return (self._base,)

    def refusal(self, prompt: str) -> str | None:
        """A prompt must leave room for the whole answer, so that we never truncate it."""
        ids, answer, limit = self._token_ids(prompt), self._config.max_new_tokens, self._model
        if ids and max(ids) >= (known := limit.model.get_input_embeddings().num_embeddings):
            return f"the tokenizer gives it token {max(ids)}, but the model has only {known}"
        return too_long(len(ids), answer, limit.max_len)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests after those that already wait."""
        for request in requests:
            with _or_say(DIED, self._output):
                why, ids = self.refusal(request.prompt), self._token_ids(request.prompt)
            if why is not None:
                self._rejected.append(Completion(request.id, error=why))
            else:
                self._waiting.append(Queued(request, ids, time.monotonic()))
        self._start_next()

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._rejected or self._running or self._waiting)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Wait for the running batch, at most `timeout` seconds; the next one starts at once."""
        if self._rejected:
            finished, self._rejected = self._rejected, []
            return finished
        if self._running is None or not wait([self._running], timeout).done:
            return []
        running, self._running = self._running, None
        with _or_say(DIED, self._output):
            finished = running.result()
        self._start_next()
        return finished

    def close(self) -> None:
        """End the running batch at its next token; release memory and output streams."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        self._stop.set()
        try:
            self._worker.shutdown(cancel_futures=True)
        finally:
            self._output.restore()
            self._waiting.clear()
            self._rejected.clear()
            self._running = None
            del loaded, self._token_ids
            gc.collect()
            import torch

            if torch.cuda.is_available():  # the next engine in this process may need it
                torch.cuda.empty_cache()

    @property
    def _model(self) -> Loaded:
        if self._loaded is None:
            raise EngineError("the engine has been closed")
        return self._loaded

    def _start_next(self) -> None:
        """Start a batch of the arm that has waited longest, unless one is running."""
        if self._running is not None or not self._waiting:
            return
        arm = self._waiting[0].request.arm
        batch: list[Queued] = []
        others: deque[Queued] = deque()
        for item in self._waiting:
            joins = item.request.arm == arm and len(batch) < self._config.batch_size
            (batch if joins else others).append(item)
        self._waiting, watch = others, Watch(self._stop)
        self._running = self._worker.submit(answer, self._model, self._config, batch, watch)


def _next_tokens(loaded: Loaded, arms: Sequence[str]) -> list[canary.Rows]:
    """For each arm and canary text, the likeliest next tokens; one batch per run of an arm."""
    texts = [tuple(loaded.tokenizer.encode(text)) for text in canary.TEXTS]
    found: list[canary.Rows] = []
    for arm, same in itertools.groupby(arms):
        rows = texts * len(list(same))
        known = model.likeliest_tokens(loaded, arm, rows, canary.TOP_TOKENS)
        found += [known[i : i + len(texts)] for i in range(0, len(rows), len(texts))]
    return found


def _or_say(what: str, output: OutputToFile) -> contextlib.AbstractContextManager[None]:
    return translated(what, output, _remedy)


def _remedy(error: Exception) -> str | None:
    if isinstance(error, ImportError):
        return "pip install 'vllm_eval[transformers]'"
    words = one_line(error)
    return next((todo for parts, todo in REMEDIES if any(part in words for part in parts)), None)
