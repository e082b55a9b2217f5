"""`import tptt` and `tptt --help` load little, and transformers' Auto classes know the type "tptt" all the same."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tptt
import tptt.hf

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas", "pyarrow", "matplotlib", "trl", "numpy")
COST = """
import json, resource, sys
def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime
begin = used()
{code}
print()
print(json.dumps([used() - begin, [n for n in {heavy} if n in sys.modules]]))
"""


def cost(code):
    """Seconds of CPU time that `code` takes in a process of its own, and which of the `HEAVY` modules it has loaded."""
    found = []
    for _ in range(2):  # the first may have to compile
        script = COST.format(code=code, heavy=HEAVY)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return min(seconds for seconds, _ in found), found[-1][1]


def test_import_tptt_loads_nothing_large():
    seconds, loaded = cost("import tptt")
    assert loaded == [] and seconds < 0.5, (seconds, loaded)


HELP = """
from typer.testing import CliRunner
from tptt.cli.main import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "quickstart" in result.output and "train" in result.output, result.output
"""


def test_help_loads_nothing_large():
    seconds, loaded = cost(HELP)
    assert loaded == [] and seconds < 1.0, (seconds, loaded)


@pytest.mark.parametrize(
    "code",
    [
        "import tptt; from transformers import AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM; import tptt",
        "import tptt; import peft; from transformers import AutoConfig, AutoModelForCausalLM",
        "import tptt; from transformers import GenerationMixin, AutoConfig, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModelForCausalLM",  # torch calls tptt.autoload
        "import torch; from transformers import AutoConfig, AutoModelForCausalLM",
        "from tptt import Session; from transformers import AutoConfig, AutoModelForCausalLM",
    ],
)
def test_auto_classes_know_the_type_whatever_is_imported_first(code, tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    script = f"""{code}
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
print(type(AutoConfig.from_pretrained({str(tmp_path)!r})).__module__, type(model).__module__)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
print(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["tptt"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tptt.hf.configuration", "tptt.hf.model", "TpttModel"]


@pytest.mark.parametrize("package", [tptt, tptt.hf])
def test_public_names_are_there(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("package", [tptt, tptt.hf])
def test_type_checkers_see_the_same_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(x for x in tree.body if isinstance(x, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(package.__all__) - {"__version__"}
