"""Small data of the form that RULER's wheel has, and a tokenizer of whole words."""

import json
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.real.material import read_sources

QUESTIONS = {"test": 10, "dev": 8}
CHAT = (
    "{% for m in messages %}<s> {{ m['role'] }}\n{{ m['content'] }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant\n{% endif %}"
)
CONSTANTS = '''"""Templates."""
TASKS = {
    'niah': {
        'tokens_to_generate': 24,
        'template': """Some magic {type_needle_v} are hidden here. Keep the {type_needle_v}.\\n{context}\\nWhat are all the magic {type_needle_v} for {query}?""",
        'answer_prefix': """ The magic {type_needle_v} for {query} are""",
    },
    'variable_tracking': {
        'tokens_to_generate': 30,
        'template': """Track the chain.\\n\\n{context}\\nQuestion: Which variables have the value {query}?""",
        'answer_prefix': """ Answer: {num_v} variables have the value {query}: """,
    },
    'common_words_extraction': {
        'tokens_to_generate': 40,
        'template': """A list of words.\\n{context}\\nQuestion: Which 10 are common?""",
        'answer_prefix': """ Answer: The words are:""",
    },
    'freq_words_extraction': {
        'tokens_to_generate': 20,
        'template': """A coded text. {context}\\nQuestion: Which three are frequent?""",
        'answer_prefix': """ Answer: These:""",
    },
    'qa': {
        'tokens_to_generate': 16,
        'template': """Documents follow.\\n\\n{context}\\n\\nQuestion: {query}""",
        'answer_prefix': """ Answer:""",
    },
}
'''  # noqa: E501 - a file as RULER's


def invented(count, seed):
    """Words that no language has."""
    draw = random.Random(seed)
    return ["".join(draw.choices("bdfglmnprst", k=1) + draw.choices("aeiou", k=1) + [str(i)]) for i in range(count)]


def prose(draw, sentences, words=12):
    """Sentences of random words."""
    return " ".join(
        " ".join("".join(draw.choices("aeioulnrst", k=5)) for _ in range(words)).capitalize() + "."
        for _ in range(sentences)
    )


def squad(draw):
    """14 articles of 6 passages; each has a question, an impossible one, and an answer that the text told before."""
    articles = []
    for a in range(14):
        paragraphs = []
        for p in range(6):
            name = f"Answer{a}x{p}"
            text = f"{prose(draw, 1)} It was {name} first. {prose(draw, 7)} At last came the old {name} again."
            first = {"text": name, "answer_start": text.index(name)}
            told = {"text": name, "answer_start": text.rindex(name)}
            asked = [
                {"question": f"Who was it in {a} {p}?", "is_impossible": False, "answers": [first, first]},
                {"question": f"Who came in {a} {p}?", "is_impossible": False, "answers": [told]},
                {"question": "Who else?", "is_impossible": True, "answers": []},
            ]
            paragraphs.append({"context": text, "qas": asked})
        articles.append({"title": f"Article_{a}", "paragraphs": paragraphs})
    return {"data": articles}


def hotpotqa(draw):
    """60 questions of 10 paragraphs, some of which two questions share; every fifth answer is "yes"."""
    paragraphs = {}
    for i in range(520):
        town = "".join(draw.choices("aeioulnrst", k=6)).capitalize()
        text = [f"{prose(draw, 3)} The river was called Flow{i}.", f" {town} was there.", f" All boats go to {town}."]
        paragraphs[f"Title {i}"] = text
    items = []
    for q in range(60):
        own = [f"Title {i % 520}" for i in range(9 * q, 9 * q + 10)]  # the last one is the next question's first
        answer = "yes" if q % 5 == 0 else f"Flow{9 * q}"
        items.append(
            {
                "_id": f"id{q:03d}",
                "question": f"What is the river of {q}?",
                "answer": answer,
                "supporting_facts": [[own[0], 0], [own[1], 1]],
                "context": [[title, paragraphs[title]] for title in own],
            }
        )
    return items


@pytest.fixture(scope="session")
def data_files():
    """Name -> text of every file that rows are made of."""
    draw = random.Random(0)
    months = ["January", "March", "June", "October"]
    essays = [f"{months[i % 4]} {2000 + i}{prose(draw, 60)}" for i in range(20)]
    essays[7] += essays[2][-400:]  # these two have to stay together
    return {
        "constants.py": CONSTANTS,
        "essays.json": json.dumps({"text": "".join(essays)}),
        "squad.json": json.dumps(squad(draw)),
        "hotpotqa.json": json.dumps(hotpotqa(draw)),
        "nouns.txt": "\n".join(invented(200, 1)),
        "adjectives.txt": "\n".join(invented(200, 2)),
        "verbs.txt": "\n".join(invented(200, 3)),
    }


@pytest.fixture(scope="session")
def data_folder(data_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, text in data_files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sources(data_folder):
    return read_sources(data_folder, QUESTIONS)


def word_tokenizer(chat):
    """A tokenizer for which every word, number and sign is one token."""
    core = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    found.chat_template = CHAT if chat else None
    return found


@pytest.fixture(scope="session", params=[True, False], ids=["chat", "plain"])
def tokenizer(request):
    return word_tokenizer(request.param)
