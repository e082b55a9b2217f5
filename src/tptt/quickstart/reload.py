"""Generation in a process of its own that knows nothing but the checkpoint's folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# written beside the report as generate.py: an example to start from, and what the quickstart itself runs
SCRIPT = '''"""Load the checkpoint beside this file and go on.

python generate.py [PROMPT_FILE] [NEW_TOKENS] [THREADS]
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

checkpoint = Path(__file__).parent / "checkpoint"
prompt = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else "The standard library"
new_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 100
if len(sys.argv) > 3:
    torch.set_num_threads(int(sys.argv[3]))

tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).eval()
inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False, add_special_tokens=False)
result = model.generate(
    **inputs, max_new_tokens=new_tokens, do_sample=False, repetition_penalty=1.2,
    streamer=TextStreamer(tokenizer, skip_prompt=True), return_dict_in_generate=True,
)
layers = result["cache" if "cache" in result else "past_key_values"].layers  # the name before transformers 5.24
print(json.dumps({
    "model": type(model).__name__,
    "tokens": result.sequences.shape[1],
    "window": model.config.max_self_attn_length,
    "kv_entries": max(layer.keys.shape[2] for layer in layers),
    "state_shape": list(layers[0].state.shape),
}))
'''


def generate_fresh(
    out: Path, prompt: str, new_tokens: int, threads: int, echo: Callable[[str], None]
) -> tuple[str, dict]:
    """Write ``out``/generate.py and run it on ``prompt`` in a fresh Python; its output goes to ``echo`` as it comes.

    Returns:
        The generated text, and what the process found in its cache.

    Raises:
        RuntimeError: the process failed; the message ends with its last lines.
    """
    script, file = out / "generate.py", out / "prompt.txt"
    script.write_text(SCRIPT, encoding="utf-8")
    file.write_text(prompt, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", str(script), str(file), str(new_tokens), str(threads)]
    errors = out / "generate.log"
    lines: list[str] = []
    with (
        errors.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        line = ""
        while piece := process.stdout.read(1):
            line += piece
            if piece == "\n":
                lines.append(line)
                line = ""
            if not line.startswith("{"):  # the last line is for us
                echo(piece)
        lines.append(line)
    tail = errors.read_text(encoding="utf-8").strip().splitlines()[-5:]
    if process.returncode != 0:
        raise RuntimeError(f"loading the checkpoint in a fresh process failed ({errors}):\n" + "\n".join(tail))
    errors.unlink()
    text = [x for x in lines if x.strip()]
    return "".join(text[:-1]), json.loads(text[-1])
