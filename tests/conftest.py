"""Small builders shared by the tests: valid answers, data sets, scripts, and a run of the CLI.

Also `--deep`, and the order of the tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests import depth, workers
from vllm_eval import cli
from vllm_eval.records import Case
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.tasks import Task


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="everything, at full counts")


def pytest_configure(config: pytest.Config) -> None:
    depth.DEPTH.deep = bool(config.getoption("deep"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only a deep run makes; begin with what takes longest."""
    for item in items:
        if item.get_closest_marker("deep") and not depth.DEPTH.deep:
            item.add_marker(pytest.mark.skip(reason="give --deep"))
    items.sort(key=workers.turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> workers.Groups | None:
    """Of files, as `--dist loadfile` has it, but for those of `workers`."""
    return workers.Groups(config, log) if config.getoption("dist") == "loadfile" else None


REQUIREMENTS = """\
functional_requirements:
- {id: FR001, description: Borrow a ladder for the weekend}
- {id: FR002, description: Return tools by bicycle courier}
non_functional_requirements:
- {id: NFR001, description: Pages open quickly}
constraints:
- {id: C001, description: Only open-source parts}
"""


PRODUCT_OWNER = open_task("product_owner").declaration


def po_inputs(concept: str, requirements_yaml: str) -> dict[str, str]:
    """What a case of the Product Owner holds."""
    return {"concept": concept, "requirements_yaml": requirements_yaml}


class Answers:
    """Makes answers; every part of a fresh one is valid, and a test changes what it is about."""

    def vision(self, **changes: object) -> dict[str, object]:
        """A complete VISION with some keys replaced."""
        return {
            "product_name": "Tool Library",
            "product_summary": "Neighbours lend each other tools. " * 4,
            "target_users": ["neighbours", "clubs"],
            "value_proposition": ["cheaper", "greener"],
            "key_capabilities": ["lend", "return"],
            "non_goals": [],
            "success_metrics": ["loans a week", "tools kept"],
            "last_updated": "2025-03-01T10:00:00Z",
        } | changes

    def review(self, **changes: object) -> dict[str, object]:
        """A complete REVIEW with some keys replaced."""
        return {
            "status": "aligned",
            "summary": ["clear scope", "small team"],
            "requirements_alignment": {
                "aligned": ["FR001: lending", "FR002: returns"],
                "gaps": ["NFR001: no target"],
                "conflicts": ["C001: a paid map"],
            },
            "recommended_actions": ["Choose a map", "Set a target"],
            "narrative": "The vision holds together and needs two decisions before work. " * 3,
        } | changes

    def text(self, vision: object = None, review: object = None) -> str:
        """An answer of two blocks; a string is taken as the block's text, anything else dumped."""
        vision = self.vision() if vision is None else vision
        review = self.review() if review is None else review
        first, second = (b if isinstance(b, str) else yaml.safe_dump(b) for b in (vision, review))
        return f"```yaml VISION\n{first}\n```\n```yaml REVIEW\n{second}\n```\n"

    def bad(self) -> str:
        """An answer that breaks the contract: its REVIEW lacks the narrative."""
        review = self.review()
        del review["narrative"]
        return self.text(review=review)


@dataclass(frozen=True)
class Run:
    """What one call of the program left behind."""

    code: int
    out: str
    err: str
    output_dir: Path

    @property
    def folder(self) -> Path:
        """The only run folder."""
        (folder,) = self.output_dir.iterdir()
        return folder

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Every attempt, in the order written."""
        lines = (self.folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def result(self, name: str) -> dict[str, Any]:
        """The one result file whose name begins with `name`."""
        (path,) = self.folder.glob(f"{name}*.json")
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    def attempts(self, arm: str, case: str) -> list[dict[str, Any]]:
        """The journal's lines of one arm and case."""
        return [r for r in self.journal if r["arm"] == arm and r["concept_id"] == case]


class Bench:
    """A place for one test's files, and the program run on them with the scripted engine."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.cases = folder / "cases.jsonl"
        self.script = folder / "script.jsonl"
        self.output_dir = folder / "out"
        self._capture = capture

    def write(self, path: Path, rows: Sequence[Mapping[str, object] | str]) -> Path:
        """JSON lines; a string is written as it is."""
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def dataset(self, count: int = 2, **fields: object) -> Path:
        """Cases K1, K2, ... with the same requirements."""
        row = {"concept": "A tool library", "requirements_yaml": REQUIREMENTS, "tier": "simple"}
        rows = [row | {"concept_id": f"K{n}"} | fields for n in range(1, count + 1)]
        return self.write(self.cases, rows)

    def answers(self, *lines: Mapping[str, object]) -> Path:
        """The script; a line without `concept_id` answers every case."""
        return self.write(self.script, [{"concept_id": "*"} | dict(line) for line in lines])

    def arguments(self, *more: str) -> list[str]:
        """A run with adapter `pupil`, without a report and the profile of this machine."""
        return [
            *("--engine", "scripted", "--script", str(self.script), "--adapter", "pupil"),
            *("--dataset-path", str(self.cases), "--output-dir", str(self.output_dir)),
            *("--profile", "none", "--no-report", *more),
        ]

    def call(self, *arguments: str) -> Run:
        """The program with exactly these arguments, in this process."""
        self._capture.readouterr()
        with pytest.raises(SystemExit) as leave:
            cli.main(list(arguments))
        printed = self._capture.readouterr()
        assert isinstance(leave.value.code, int)
        return Run(leave.value.code, printed.out, printed.err, self.output_dir)

    def run(self, *more: str) -> Run:
        """The program over this bench's data set and script."""
        return self.call(*self.arguments(*more))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


@pytest.fixture(scope="session")
def task() -> Task:
    return open_task("product_owner")


@pytest.fixture
def case() -> Case:
    return Case("K1", 1, "simple", po_inputs("A tool library", REQUIREMENTS))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real records beside the repository; a test that asks for them is skipped without."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder
