"""The text of the notebooks' cells that is the same, or nearly so, on every platform."""

from __future__ import annotations

INSTALL_WORDS = """\
## Install
The packages go into their own environment in SCRATCH, so they neither change what the platform has
installed nor depend on it. Wheels for CUDA 13 (vLLM 0.20 and newer) need driver 580; with an older
driver this cell installs vLLM 0.19.1, the last release for CUDA 12. Packages are taken as of a
fixed date, so a later release cannot break this notebook."""

INSTALL = """\
import re
import shlex
import subprocess
import sys

PYTHON = sys.executable
if INSTALL:
    if not TOOL:
        raise RuntimeError("fill in TOOL in the first cell: where to install vllm_eval from")
    driver = subprocess.getoutput("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    major = int((re.match(r"\\d+", driver) or ["0"])[0])
    if not major:
        raise RuntimeError("no GPU, so vLLM's GPU build cannot run: see the cell above")
    if major >= 580:
        day, packages = "2026-09-15", ["vllm==0.26.0"]
    else:
        day, packages = "2026-06-01", ["vllm==0.19.1", "transformers==5.9.0"]
    packages = shlex.join([*packages, "bitsandbytes==0.49.2", TOOL])
    PYTHON = f"{SCRATCH}/environment/bin/python"
    %pip install -q uv==0.13.9
    uv = shlex.quote(sys.executable) + " -m uv"
    !{uv} venv -q --clear --managed-python --python 3.12 "{SCRATCH}/environment"
    !{uv} pip install -q --python "{PYTHON}" --exclude-newer {day} {packages}
    if _exit_code:
        raise RuntimeError("the installation failed: see above; is TOOL right?")
    print("installed", packages, "for driver", driver.split()[0])"""

FETCH = """\
from pathlib import Path

WORK = Path.cwd()
if REPOSITORY:
    WORK = Path(SCRATCH, Path(REPOSITORY).stem)
    !git init -q "{WORK}" && git -C "{WORK}" config remote.origin.url "{REPOSITORY}"
    !GIT_TERMINAL_PROMPT=0 git -C "{WORK}" fetch -q --depth 1 origin "{BRANCH}"
    if _exit_code:
        raise RuntimeError(f"{BRANCH} of {REPOSITORY} could not be fetched: see above")
    !git -C "{WORK}" checkout -q --force FETCH_HEAD && git -C "{WORK}" log -1 --oneline
    if _exit_code:
        raise RuntimeError(f"{BRANCH} of {REPOSITORY} could not be checked out: see above")
OUTPUT_DIR = str(WORK / OUTPUT_DIR)
print("paths are looked up in", WORK)"""

CHECK_WORDS = """\
## Check
This checks everything that needs no model: versions, memory (with the arithmetic), the adapter
against its base, and every line of the cases."""

TOOL = """\
import os
import signal
import subprocess

# Set by Jupyter for its own kernel; PYTHON has other modules and no terminal.
JUPYTERS = ("FORCE_COLOR", "MPLBACKEND", "PYTHONPATH")
ENVIRONMENT = {name: text for name, text in os.environ.items() if name not in JUPYTERS}
ENVIRONMENT["PYTHONUTF8"] = "1"


def run_tool(*arguments, good=(0,)):
    \"\"\"Run vllm_eval; show and return its output. Stop ends it cleanly, Stop twice at once.\"\"\"
    # A kernel that dies or is restarted takes the program with it.
    command = ["setpriv", "--pdeathsig", "TERM", PYTHON, "-m", "vllm_eval", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    text = {"encoding": "utf-8", "errors": "replace"}
    process = subprocess.Popen(
        command, cwd=WORK, env=ENVIRONMENT, start_new_session=True, **pipes, **text
    )
    said = []
    try:
        while process.returncode is None:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said.append(line)
                process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
    finally:
        if process.poll() is None:
            process.terminate()
    if process.returncode not in good:
        raise RuntimeError(f"vllm_eval ended with exit code {process.returncode}: see above")
    return "".join(said)"""

KEEP = """\
import shutil
import time

kept_at = 0.0


def keep(now=False):
    \"\"\"Copy new files to KEEP_IN. Drive stores a file once it is closed.\"\"\"
    global kept_at
    if now or time.monotonic() - kept_at >= KEEP_EVERY:
        try:
            copy_files(Path(OUTPUT_DIR), Path(KEEP_IN), again=True)
        except OSError as error:
            print("NOT COPIED to KEEP_IN:", error)
        kept_at = time.monotonic()


def restore():
    \"\"\"Fetch what an earlier session kept. Files that are already here are newer.\"\"\"
    copy_files(Path(KEEP_IN), Path(OUTPUT_DIR), again=False)


def copy_files(source, target, again):
    for path in filter(Path.is_file, source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.suffix != ".part" and (not copy.exists() or (again and differ(path, copy))):
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_name(f"{copy.name}.part")
            shutil.copy2(path, part)
            part.replace(copy)  # so a lost session never leaves half a file


def differ(path, copy):
    new, old = path.stat(), copy.stat()
    return new.st_size != old.st_size or new.st_mtime > old.st_mtime + 1  # drives may round"""

SHOW = "said.append(line)\n"
"""The line after which a session with KEEP_IN copies its files."""

CHECK = """\
ARGUMENTS = ["--adapter", ADAPTER, "--dataset-path", DATASET, "--output-dir", OUTPUT_DIR]
if PROFILE != "auto":
    ARGUMENTS += ["--profile", PROFILE]
if MAX_SAMPLES:
    ARGUMENTS += ["--max-samples", str(MAX_SAMPLES)]
ARGUMENTS += OPTIONS
run_tool("check", *ARGUMENTS);"""

EVALUATE = """\
said = run_tool("run", *ARGUMENTS, "--resume", "auto", good=(0, 1, 4))  # PASS, FAIL, UNDECIDED"""

RUN = """\
RUN = Path(re.search(r"^files in (.+)", said, re.MULTILINE)[1])"""

REPORT = """\
from IPython.display import HTML

code = "import sys, vllm_eval; print(vllm_eval.show(sys.argv[1])._repr_html_())"
shown = subprocess.run([PYTHON, "-c", code, RUN], env=ENVIRONMENT, capture_output=True)
if shown.returncode:
    raise RuntimeError(shown.stderr.decode())
HTML(shown.stdout.decode())"""

DRIVE_WORDS = """\
## Drive
Colab asks for permission once. The run writes to this machine's own disk, and its files are copied
to KEEP_IN every KEEP_EVERY seconds."""

DRIVE = """\
if KEEP_IN.startswith("/content/drive"):
    from google.colab import drive

    drive.mount("/content/drive")"""
