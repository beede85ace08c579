"""The programs that `docs/adapters.md` shows, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"


def run_documented(word: str, folder: Path, base: Path | None = None) -> None:
    """The one that holds `word`, with these folders as FOLDER and BASE."""
    blocks = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if word in block]
    exec(code.replace("FOLDER", str(folder)).replace("BASE", str(base)), {})
