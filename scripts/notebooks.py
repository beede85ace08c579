"""Writes `notebooks/` from one source, so that the platforms cannot drift apart.

Every notebook has the same dozen cells; `PLATFORMS` holds what differs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts import notebook_cells as cell

FOLDER = Path(__file__).parents[1] / "notebooks"
BOTH_ARMS_IN_4_BITS = (
    "A 7B model in 16 bits does not fit this card, so **the base is quantised to 4 bits** "
    "(bitsandbytes NF4), for base and student alike. The program and its report say so."
)


@dataclass(frozen=True, slots=True)
class Platform:
    """What differs between platforms."""

    name: str
    file: str
    machine: str
    measured: str
    """Whether the base is quantised."""
    elsewhere: str
    """What ADAPTER and DATASET may be, other than paths in the repository."""
    output_dir: str
    gpu_hint: str
    again: str
    """How to continue after an interruption."""
    save: str
    """Last cell."""
    saved: str
    """Text under the last cell's heading."""
    keep_in: str | None = None
    """Second place that outlives the machine."""


COLAB = Platform(
    name="Google Colab",
    file="colab_eval_po_lora",
    machine="**Runtime > Change runtime type > T4 GPU**",
    measured=BOTH_ARMS_IN_4_BITS,
    elsewhere="a folder on Drive (`/content/drive/MyDrive/...`), or one uploaded to `/content`",
    output_dir="/content/lora_eval_results",
    gpu_hint="no GPU: Runtime > Change runtime type > T4 GPU",
    again=(
        "Results are copied to `MyDrive/lora_eval_results/` during the run. If you lose the "
        "session, open this notebook again and **Run all**: it fetches them and continues."
    ),
    saved="The results are on your Drive. The archive holds everything except the engine's log.",
    save="""\
copy_files(Path(OUTPUT_DIR), Path(KEEP_IN), again=True)
print("saved in", Path(KEEP_IN) / RUN.name)
# To download the archive as well:
# from google.colab import files; files.download(str(next(RUN.glob("*.zip"))))""",
    keep_in="/content/drive/MyDrive/lora_eval_results",
)
KAGGLE = Platform(
    name="Kaggle",
    file="kaggle_eval_po_lora",
    machine="**Settings > Accelerator > GPU T4 x2**, and **Internet on**",
    measured="The two cards together hold the base in 16 bits; **nothing is quantised**.",
    elsewhere="an input you added (`/kaggle/input/...`)",
    output_dir="/kaggle/working/lora_eval_results",
    gpu_hint="no GPU: Settings > Accelerator > GPU T4 x2",
    again=(
        "Results are in `/kaggle/working`, which is the Output tab of a saved version. With "
        "**Settings > Persistence > Files only** they outlive a session, and **Run all** continues."
    ),
    saved="Once you save the version, everything in `/kaggle/working` is in its Output tab.",
    save="""\
from IPython.display import FileLink

archive = next(RUN.glob("*.zip"))
print("saved in", RUN)
FileLink(os.path.relpath(archive))  # relative to the working folder""",
)
LIGHTNING = Platform(
    name="Lightning AI",
    file="lightning_eval_po_lora",
    machine="a Studio with **one T4**",
    measured=BOTH_ARMS_IN_4_BITS,
    elsewhere="a folder uploaded to the Studio (`/teamspace/studios/this_studio/...`)",
    output_dir="/teamspace/studios/this_studio/lora_eval_results",
    gpu_hint="no GPU: switch the Studio's machine to T4",
    again=(
        "Results are in the Studio's own folder, which outlives its machine. After a stop, start "
        "the Studio again and **Run all**: it continues where it was."
    ),
    saved="The Studio's folder outlives its machine. Download the archive from the file browser.",
    save="""\
print("saved in", RUN)
print("archive:", next(RUN.glob("*.zip")))""",
)
PLATFORMS = (COLAB, KAGGLE, LIGHTNING)

Cells = list[tuple[str, str]]
"""Kind (`markdown`, `code`, `parameters`) and text."""


def cells(on: Platform) -> Cells:
    """The notebook of a platform."""
    tool, evaluate = cell.TOOL, cell.EVALUATE
    drive: Cells = []
    keep: Cells = []
    if on.keep_in:
        tool = tool.replace(cell.SHOW, f"{cell.SHOW}{' ' * 20}keep()\n")
        evaluate = f"restore()\ntry:\n    {evaluate}\nfinally:\n    keep(now=True)"
        drive = [("markdown", cell.DRIVE_WORDS), ("code", cell.DRIVE)]
        keep = [("code", cell.KEEP)]
    return [
        ("markdown", _title(on)),
        ("parameters", _parameters(on)),
        ("markdown", "## GPU"),
        ("code", _gpu(on)),
        *drive,
        ("markdown", cell.INSTALL_WORDS),
        ("code", cell.INSTALL),
        ("markdown", "## Adapter and cases"),
        ("code", cell.FETCH),
        ("markdown", cell.CHECK_WORDS),
        ("code", tool),
        *keep,
        ("code", cell.CHECK),
        ("markdown", f"## Evaluate\nRunning this cell again continues the same run. {on.again}"),
        ("code", f"{evaluate}\n{cell.RUN}"),
        ("markdown", _REPORT),
        ("code", cell.REPORT),
        ("markdown", f"## Save\n{on.saved}"),
        ("code", on.save),
    ]


_REPORT = """\
## Report
**PASS**: the adapter meets every rule. **FAIL**: it misses one, or answers are missing.
**UNDECIDED** (exit code 4, only with `--certify`): the cases do not settle it, and the report says
how many probably would."""


def _title(on: Platform) -> str:
    return f"""\
# Is this LoRA adapter good enough? On {on.name}
Base and student answer the same cases in one vLLM engine, and the gate says PASS, FAIL or,
with `--certify`, UNDECIDED.

1. Choose {on.machine}.
2. Fill in the parameters below.
3. **Run all.** Installing takes a few minutes, and the first run downloads the base model (15 GB).

{on.measured}"""


def _parameters(on: Platform) -> str:
    keep = ""
    if on.keep_in:
        keep = f"""
KEEP_IN = "{on.keep_in}"  # receives a copy of OUTPUT_DIR
KEEP_EVERY = 120  # seconds between two copies"""
    return f"""\
# The git repository with the adapter and the cases, or "" for folders that are already here.
REPOSITORY = ""  # for example https://github.com/YOU/PROJECT.git
BRANCH = "main"
# Paths in that repository, or {on.elsewhere}.
# The adapter may also be a hub id.
ADAPTER = "artifacts/models/po_student_v1"
DATASET = "artifacts/synthetic/product_owner/product_owner_val.jsonl"

MAX_SAMPLES = None  # how many cases to draw; None for all, 20 for a first look
PROFILE = "auto"  # chosen by platform and GPU; `check` says which
OPTIONS = []  # options of `python -m vllm_eval --help`, one word per item: ["--certify", "0.95"]
OUTPUT_DIR = "{on.output_dir}"{keep}
SCRATCH = "/tmp/vllm_eval"  # for the clone and the packages; may vanish with the machine

TOOL = ""  # where to install vllm_eval from: "git+https://..." or the path of a wheel
INSTALL = True  # False if vllm_eval and its engine are already installed"""


def _gpu(on: Platform) -> str:
    query = "name,memory.total,compute_cap,driver_version"
    return f'!nvidia-smi --query-gpu={query} --format=csv || echo "{on.gpu_hint}"'


def notebook(on: Platform) -> str:
    """A platform's notebook as JSON, format 4.5."""
    made = []
    for number, (kind, text) in enumerate(cells(on), start=1):
        metadata = {"tags": ["parameters"]} if kind == "parameters" else {}
        kinds: dict[str, object] = {"cell_type": "markdown"}
        if kind != "markdown":
            kinds = {"cell_type": "code", "execution_count": None, "outputs": []}
        head: dict[str, object] = {"id": f"cell-{number:02}", "metadata": metadata}
        made.append(head | kinds | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python"}
    about = {"accelerator": "GPU", "kernelspec": kernel, "language_info": language}
    whole = {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def instructions() -> str:
    """The Lightning notebook for pasting by hand."""
    parts = []
    for kind, text in cells(LIGHTNING):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
    head, *rest = parts
    how = (
        f"*These are the cells of `{LIGHTNING.file}.ipynb`, to paste by hand: open a Studio, add a "
        "notebook, and paste each block into its own cell, in this order.*"
    )
    return "\n\n".join([head, how, *rest]) + "\n"


def generate() -> dict[str, str]:
    """Every file of `notebooks/` by its name."""
    files = {f"{platform.file}.ipynb": notebook(platform) for platform in PLATFORMS}
    return files | {"LIGHTNING_AI_INSTRUCTIONS.md": instructions()}


if __name__ == "__main__":
    for file_name, content in generate().items():
        (FOLDER / file_name).write_text(content, encoding="utf-8")
        sys.stdout.write(f"notebooks/{file_name}\n")
