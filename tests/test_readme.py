"""README's first sample runs as it stands there, and says what README says that it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow  # three minutes
def test_ten_lines_that_run(tmp_path):
    sample, *_ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    answer = re.search(r"# (\d+)$", sample.strip()).group(1)
    done = subprocess.run([sys.executable, "-c", sample], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    tokens, _, asked = said.partition(" tokens read;")
    assert int(tokens) > 3_000 and asked.strip() == answer, said
    assert "Warning" not in done.stderr, done.stderr
