"""Checks that every message quoted in docs/operations.md is in the sources, and that every alert is in the document.

A message is a cell in the first column of a table with the heading "Message", in which `...` stands for any text. The
other parts must occur in one string literal of the programs, in this order; strings of tests do not count. Messages
that the programs compose from several literals are listed here. The alerts are those of ops/grafana/alerts.yaml.
"""

import re
import sys
from pathlib import Path

BOOK = Path("docs/operations.md")
ALERTS = Path("ops/grafana/alerts.yaml")
SOURCES = ["launcher/**/*.rs", "trainer/**/*.rs", "model/**/*.rs", "data/**/*.rs"]
# Each entry has the pieces of a message, each of which is in one literal.
COMPOSED = [
    ("... was killed by ...", "SIGKILL...", ", probably sent by the kernel because memory ran out (see dmesg)"),
    ("SIGBUS...", ": shared memory (/dev/shm) may be full"),
    ("SIGILL...", ": the program was built for another kind of processor"),
    (
        "... has no room: ...; ...",
        ": nothing saved is lost; make room or raise checkpoint.spool_limit, and start again to upload it",
    ),
    ("cannot reach ...", "; repair it, remove it from --hostfile, or allow fewer ranks with --min-ranks"),
]
# The relevant tokens of Rust; everything else is skipped character by character. A lifetime does not match as a
# character literal, because it has no closing quote.
TOKEN = re.compile(
    r"""
    //[^\n]* | /\*.*?\*/
    | r(?P<hashes>\#*)"(?P<raw>.*?)"(?P=hashes)
    | "(?P<text>(?:[^"\\]|\\.)*)"
    | '(?:[^'\\]|\\'|\\[^']*)'
    | (?P<test>\#\[cfg\(test\)\])
    | (?P<open>[(\[{]) | (?P<close>[)\]}]) | (?P<end>;)
    """,
    re.DOTALL | re.VERBOSE,
)


def first_column(text, heading):
    """Returns the quoted first cells of all tables with this heading."""
    cells, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.startswith(f"| {heading} |"):
            inside = True
        elif inside and (quoted := re.match(r"\| `(.*?)` \|", line)):
            cells.append(quoted.group(1))
    return cells


def literals(source):
    """Yields the string literals of a source, except those of items under #[cfg(test)]."""
    depth, test_depth = 0, None
    for token in TOKEN.finditer(source):
        if token["test"]:
            test_depth = depth if test_depth is None else test_depth
        elif token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
            # A bracket may close another attribute; a brace ends the item.
            if depth == test_depth and token["close"] == "}":
                test_depth = None
        elif token["end"]:
            if depth == test_depth:
                test_depth = None
        elif test_depth is None and (token["text"] is not None or token["raw"] is not None):
            yield token["text"] if token["raw"] is None else token["raw"]


def strings():
    """Returns all strings of the programs, with continued lines joined as by the compiler."""
    texts = set()
    for pattern in SOURCES:
        for path in sorted(Path().glob(pattern)):
            # Test modules in separate files have these names.
            if "tests" not in path.parts and path.name != "tests.rs":
                texts.update(literals(path.read_text()))
    joined = (re.sub(r"\\\n\s*", "", text).replace('\\"', '"') for text in texts)
    # Replace what is formatted at run time.
    return [re.sub(r"\{[^{}]*\}", "\0", text) for text in joined]


def is_in_sources(message, texts):
    """Returns true if all parts of the message between dots are in one of the strings, in order."""
    parts = [part.strip(" ;:,()") for part in message.split("...")]
    wanted = re.compile(".*".join(re.escape(part) for part in parts if part), re.DOTALL)
    return any(wanted.search(text) for text in texts)


def main():
    """Prints all problems and returns whether there are any."""
    book, texts = BOOK.read_text(), strings()
    messages = first_column(book, "Message")
    composed = {"".join(pieces): pieces for pieces in COMPOSED}
    problems = [f"not in the run book: {message}" for message in composed if message not in messages]
    for message in messages:
        pieces = composed.get(message, [message])
        absent = [piece for piece in pieces if not is_in_sources(piece, texts)]
        problems += [f"not in the sources: {piece} (part of: {message})" for piece in absent]
    documented, alerts = first_column(book, "Alert"), re.findall(r"- alert: (\w+)", ALERTS.read_text())
    problems += [f"not in the run book: {alert}" for alert in alerts if alert not in documented]
    problems += [f"no such alert: {alert}" for alert in documented if alert not in alerts]
    if len(messages) < 30 or len(alerts) < 5:
        problems.append(f"only {len(messages)} messages and {len(alerts)} alerts were found")
    for problem in problems:
        print(f"run_book: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
