"""`bench` as it is called: who is timed, on what work, and what it leaves behind.

Covered with the scripted engine: contestants, sweeps, equal work, the barrier's cost, files.
Covered with real engines: vLLM, bare calls and transformers side by side; weights made up.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from model_folders import BASE, write_json

from vllm_eval import machine
from vllm_eval.bench.contestants import Layers, choose, group
from vllm_eval.bench.shapes import make_up
from vllm_eval.errors import ConfigError
from vllm_eval.preflight.adapter_check import check_adapter
from vllm_eval.preflight.base_model import read_base
from vllm_eval.adapters import read_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Answers, Bench, Run
