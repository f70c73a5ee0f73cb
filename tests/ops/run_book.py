"""Every message that docs/operations.md quotes is in the sources, and every alarm is in it.

A message is the first column of a table that is headed "Message"; `...` in it stands for anything, within one string or across
several. Alarms are those of ops/grafana/alerts.yaml.
"""

import re
import sys
from pathlib import Path

BOOK = Path("docs/operations.md")
ALARMS = Path("ops/grafana/alerts.yaml")
SOURCES = ["launcher/**/*.rs", "trainer/src/**/*.rs", "model/src/**/*.rs", "data/src/**/*.rs"]
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def first_column(text, heading):
    """The quoted first cells of all tables with this heading."""
    cells, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.startswith(f"| {heading} |"):
            inside = True
        elif inside and (quoted := re.match(r"\| `(.*?)` \|", line)):
            cells.append(quoted.group(1))
    return cells


def strings():
    """The string literals of the sources, with lines that go on joined as the compiler joins them."""
    texts = set()
    for pattern in SOURCES:
        for path in sorted(Path().glob(pattern)):
            if "tests" not in path.parts:
                texts.update(re.sub(r"\\\n\s*", "", text) for text in LITERAL.findall(path.read_text()))
    # What is put in at run time.
    return [re.sub(r"\{[^{}]*\}", "\0", text) for text in texts]


def is_said(message, texts):
    """True if each part of the message between dots is in some string."""
    parts = [part.strip(" ;:,()") for part in message.split("...")]
    return all(any(part in text for text in texts) for part in parts if part)


def main():
    """Prints what is wrong; the exit code says whether something is."""
    book, texts = BOOK.read_text(), strings()
    messages = first_column(book, "Message")
    problems = [f"no source says: {message}" for message in messages if not is_said(message, texts)]
    told, alarms = first_column(book, "Alarm"), re.findall(r"- alert: (\w+)", ALARMS.read_text())
    problems += [f"not in the run book: {alarm}" for alarm in alarms if alarm not in told]
    problems += [f"no such alarm: {alarm}" for alarm in told if alarm not in alarms]
    if len(messages) < 30 or len(alarms) < 5:
        problems.append(f"only {len(messages)} messages and {len(alarms)} alarms were found")
    for problem in problems:
        print(f"run_book: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
