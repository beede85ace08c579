"""The text of the notebooks' cells that is the same, or nearly so, on every platform."""

from __future__ import annotations

INSTALL_WORDS = """\
## Install
Wheels for CUDA 13 (vLLM 0.20 and newer) need driver 580; for an older one this takes vLLM 0.19.1,
the last for CUDA 12. Packages are those of a fixed day, so that tomorrow's cannot break this."""

INSTALL = """\
import re
import subprocess
import sys

if INSTALL:
    if not TOOL:
        raise RuntimeError("fill in TOOL in the first cell: where vllm_eval is installed from")
    driver = subprocess.getoutput("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    major = int((re.match(r"\\d+", driver) or ["0"])[0])
    if not major:
        raise RuntimeError("no GPU, so no GPU build of vLLM: see the cell above")
    vllm, day = ("0.26.0", "2026-09-15") if major >= 580 else ("0.19.1", "2026-06-01")
    packages = f"vllm=={vllm} bitsandbytes==0.49.2 {TOOL}"
    %pip install -q uv
    !uv pip install -q --python {sys.executable} --exclude-newer {day} {packages}
    if _exit_code:
        raise RuntimeError("the installation failed: see above; is TOOL right?")
    print("installed vLLM", vllm, "for driver", driver.split()[0])"""

FETCH = """\
from pathlib import Path

WORK = Path.cwd()
if REPOSITORY:
    WORK = WORK / Path(REPOSITORY).stem
    if not WORK.is_dir():
        !git clone -q --depth 1 --branch {BRANCH} {REPOSITORY} {WORK}
        if _exit_code:
            raise RuntimeError(f"{REPOSITORY} could not be cloned: see above")
print("paths are looked up in", WORK)"""

CHECK_WORDS = """\
## Check
Everything that can be found out before a model is loaded: versions, memory with the arithmetic,
the adapter against its base, the cases to their last line."""

TOOL = """\
import os
import signal
import subprocess
import sys


def run_tool(*arguments):
    \"\"\"Run vllm_eval, show what it says as it says it; stopping the cell ends it in order.\"\"\"
    command = [sys.executable, "-m", "vllm_eval", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Jupyter claims to be a terminal, but what moves a cursor only litters a cell.
    pipes["env"] = {name: text for name, text in os.environ.items() if name != "FORCE_COLOR"}
    with subprocess.Popen(command, cwd=WORK, start_new_session=True, **pipes) as process:
        while line := next_line(process):
            print(line, end="", flush=True)
    if process.returncode not in (0, 1):  # PASS and FAIL
        raise RuntimeError(f"vllm_eval ended with exit code {process.returncode}: see above")


def next_line(process):
    try:
        return process.stdout.readline()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        return process.stdout.readline()"""

KEEP = """\
import shutil
import time

kept_at = 0.0


def keep(now=False):
    \"\"\"Copy what is new to KEEP_IN: Drive takes a file once it is closed.\"\"\"
    global kept_at
    if now or time.monotonic() - kept_at >= KEEP_EVERY:
        copy_files(Path(OUTPUT_DIR), Path(KEEP_IN), again=True)
        kept_at = time.monotonic()


def restore():
    \"\"\"Fetch what an earlier session kept; what is here already is newer.\"\"\"
    copy_files(Path(KEEP_IN), Path(OUTPUT_DIR), again=False)


def copy_files(source, target, again):
    for path in filter(Path.is_file, source.rglob("*")):
        copy = target / path.relative_to(source)
        changed = again and copy.exists() and path.stat().st_mtime > copy.stat().st_mtime
        if path.suffix != ".part" and (changed or not copy.exists()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)"""

SHOW = 'print(line, end="", flush=True)\n'
"""Where a kept session copies."""

CHECK = """\
ARGUMENTS = ["--adapter", ADAPTER, "--dataset-path", DATASET, "--output-dir", OUTPUT_DIR]
ARGUMENTS += ["--profile", PROFILE, *OPTIONS]
if MAX_SAMPLES:
    ARGUMENTS += ["--max-samples", str(MAX_SAMPLES)]
run_tool("check", *ARGUMENTS)"""

EVALUATE = 'run_tool("run", *ARGUMENTS, "--resume", "auto")'

REPORT = """\
import vllm_eval

ended = Path(OUTPUT_DIR).glob("*/comparison.json")
RUN = max(ended, key=lambda path: path.stat().st_mtime).parent
vllm_eval.show(RUN)"""

DRIVE_WORDS = """\
## Drive
Colab asks for permission once. The run works on this machine's own disk, and every KEEP_EVERY
seconds its files are copied to KEEP_IN."""

DRIVE = """\
if KEEP_IN.startswith("/content/drive"):
    from google.colab import drive

    drive.mount("/content/drive")"""
