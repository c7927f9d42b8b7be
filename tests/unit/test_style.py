"""One word for one thing: phrases and coined words that reval no longer uses occur nowhere.

They are searched in code, comments, messages, documents, configs and identifiers: `gap_canary`, `GapCanary` and
"gap canary" are all found, also where a line ends between the words. CONTRIBUTING.md says what to write instead.
Ambiguous single words (figure, score, replay, facts, rest, material) are left to reviewers.

`python tests/unit/test_style.py` prints every place.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCHED = ("benchmarks", "configs", "data", "docs", "examples", "flows", "reval", "reval_core", "tasks", "tests")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".html", ".j2", ".ipynb"}

_THINGS = (
    "nats|bits|bytes|files?|lines?|rows?|tokens|updates?|samples|responses|prompts|problems|pairs|draws|places|"
    "seconds"
)
_UNITS = (
    "token|stage|run|round|prompt|problem|weight|second|minute|update|line|row|step|shard|gpu|group|micro batch|"
    "forward pass"
)
_OBJECTS = (
    "it|them|they|the|its|their|a|any|all|these|this|that|one|nothing|everything|weights?|policy|policies|database|"
    "rounds?|rows?|files?|index|responses?|models?|tables?|of"
)

FORBIDDEN = {
    # Runs.
    "folder": r"folders?",
    "goes on": r"(?<!may )(go|goes|gone|went) on",
    "where it was": r"where it was(?! \w)",
    "hold on a run": r"hold (on|of) an? (run|evaluation)",
    "made again": rf"(make|makes|made|making)( ({_OBJECTS}))* again",
    "what could go": r"(what|which|that) (could|would|can) go",
    "gives up": r"gives up|runs? give up",
    "set aside": r"(set|sets|setting|put)( \w+){0,2} aside",
    "mend": r"mend(s|ed|ing)?",
    "damaged": r"damaged",
    "spoil": r"spoil(s|ed|t|ing)?",
    "by the calendar": r"by the calendar",
    # Policies and engines.
    "policy 0": r"policy (0|zero)",
    "hand over": r"(hand|hands|handed|handing) over",
    "gap canary": r"canar(y|ies)",
    "places a forward pass": r"places (a|per|in a|of a) (forward|pass|micro batch)",
    "an engine to match": r"wants? an engine|engine to match",
    "no GPU was at hand": r"no gpus? (is|was|were) at hand",
    # Data.
    "taking over": r"(takes|taken|taking|took) over",  # --take-over is an option of reval restore
    "from elsewhere": r"(from|of) elsewhere",
    "there already": r"(is|are|was|were) there already|already there",
    "practised on": r"practis\w*",
    "redrawing": r"redraw\w*|redrew",
    "reckoned": r"reckon\w*",
    # Evaluation and processes.
    "sitting": r"sittings?",
    "examination": r"examinations?|examiners?",
    "subject": r"subjects?(?! to\b)",
    "nursery": r"nurser(y|ies)",
    "crew": r"crews?",
    "seat": r"seats?|seated",
    "errand": r"errands?",
    "voucher": r"vouchers?",
    # Experiments.
    "what a figure came to": r"what( \w+){1,4} came to|what (came|comes) of|figures? (came|comes) to",
    "in small": r"(?<!not )(?<!\" )in small"
    r"(?! (\. items|batches|steps|pieces|chunks|groups|parts|samples|numbers|shards|files|letters))",
    "past the paper": r"past the paper",
    "held against": r"(held|hold|holds|holding) against",
    "also weighed": r"also weighed",
    # Metaphors, and "a" for "per".
    "dear": r"dear|dearer|dearest|dearly",
    "look over": r"(look|looks|looked|looking)( a| the)? (run )?over",
    "what of it": r"what of it",
    "a file a stage": rf"({_THINGS}) an? ({_UNITS})",
}
"""What not to write: a name, and a pattern over lower-case words. Punctuation is a word; identifiers are split."""

ALLOWED = {
    "a file a stage": {r"other seconds a round": "a key of the recorded baselines"},
    "practised on": {r"ahead where not practised": "a key of the results of a reproduction"},
    "seat": {
        r"chair seat table": "a list of things that are counted in word problems",
        r"text { seat }": "an answer",
    },
    "sitting": {
        # Stages of an evaluation: part of Prefect's task names and of every key of what they published.
        r"sitting (responses|verdicts)": "names of stages",
        r"\" sittings? \"": "keys of results.json and sittings.json, and the unit in which an evaluation counts",
        r"sitting =( 00001)?": "directories rollouts/sitting=00001 and facts/sitting=00001",
        r"sittings? \. json": "files of an evaluation's directory",
    },
    "damaged": {
        r"\" damaged \"": "the state of a run in `reval runs --json`",
        r"\. damaged": "the suffix of a quarantined file",
        r"damaged checkpoints": "a key of the note that a check leaves in a run directory",
    },
}
"""What stays: names that are on disk or parsed by programs, and other meanings. By phrase: patterns and reasons."""

_WORD = re.compile(r"[A-Z]?[a-zà-ÿ]+|[A-Z]+(?![a-zà-ÿ])|\d+|[.,;:!?…()\[\]{}|=/–—<>*+@&%\"]|\n[ \t]*\n")
_LITERALS = re.compile(r"(?<!\")\"\s*\n\s*[rf]*\"(?!\")")  # between adjacent string literals


def _around(pattern):
    return re.compile(rf"(?<!\S)(?:{pattern})(?!\S)")


_PATTERNS = {name: _around(pattern) for name, pattern in FORBIDDEN.items()}
_ALLOWED = {name: [_around(pattern) for pattern in patterns] for name, patterns in ALLOWED.items()}


def occurrences(text):
    """Each forbidden phrase of a text: its name, the words that matched, their line."""
    text = _LITERALS.sub("\n", text)
    words, lines, line, end, length = [], {}, 1, 0, 0
    for match in _WORD.finditer(text):
        line += text.count("\n", end, match.start())
        end = match.start()
        words.append(match.group().strip().lower() or "¶")
        lines[length] = line
        length += len(words[-1]) + 1
    joined = " ".join(words)
    for name, pattern in _PATTERNS.items():
        kept = [match.span() for allowed in _ALLOWED.get(name, ()) for match in allowed.finditer(joined)]
        for match in pattern.finditer(joined):
            if not any(start <= match.start() and match.end() <= end for start, end in kept):
                yield name, match.group(), lines[match.start()]


def texts():
    """The files of the repository that people write, without its history: their names and texts."""
    below = [path for directory in SEARCHED for path in (ROOT / directory).rglob("*")]
    for path in sorted([*ROOT.glob("*"), *below]):
        name = path.relative_to(ROOT).as_posix()
        written = path.suffix in SUFFIXES or path.name == "Makefile"
        if written and path.is_file() and not name.startswith("docs/decisions/") and path != Path(__file__):
            yield name, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def places():
    """By file: the name of each forbidden phrase in it, and where."""
    return {name: list(occurrences(text)) for name, text in texts()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the run's folder", "folder"),
        ("def run_folder(path):", "folder"),
        ("class RunFolder:", "folder"),
        ("It resumes where\n    # it was.", "where it was"),
        ('say(\n    "Given again, it goes "\n    f"on with {name}"\n)', "goes on"),
        ("checkpoints are made again", "made again"),
        ("It makes the weights of\nany round again.", "made again"),
        ("set_aside(path)", "set aside"),
        ("0.003 nats a token", "a file a stage"),
        ("one problem `in small`.", "in small"),
        ("directory.sitting(1)", "sitting"),
    ],
)
def test_a_phrase_is_found_in_prose_identifiers_and_over_lines(text, name):
    assert [found for found, _, _ in occurrences(text)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "It goes. On",
        "where it was measured",
        "tokens * a_token",
        "in small batches",
        "subject to",
        "rows and a token",
        '{"sitting": 1}',
        "facts/sitting=00001/",
    ],
)
def test_other_uses_are_left_alone(text):
    assert not list(occurrences(text))


def test_no_forbidden_phrase_occurs(places):
    wrong = [f"{path}:{line}: {words!r} ({name})" for path, found in places.items() for name, words, line in found]
    assert not wrong, "CONTRIBUTING.md says what to write instead:\n" + "\n".join(wrong)


if __name__ == "__main__":
    for path, text in texts():
        for name, words, line in occurrences(text):
            print(f"{path}:{line}: {words!r} ({name})")


def test_nobody_is_told_to_install_the_other_project_called_reval():
    """`reval` on the package index belongs to somebody else; the distribution is `reval-rl`."""
    other = re.compile(r"pip install [^\n]*?[\s'\"]reval(?![\w-])")
    assert other.search("pip install 'reval[s3]'")
    assert not other.search("pip install 'reval-rl[s3]'")
    assert [name for name, text in texts() if other.search(text) and not name.startswith("tests/")] == []
