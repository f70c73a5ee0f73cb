"""Every message that docs/operations.md quotes is in the sources, and every alarm is in it.

A message is the first column of a table that is headed "Message"; `...` in it stands for anything. All the rest of it is
in one string literal of the programs, in this order; strings of tests do not count. Messages that the programs put
together from several literals are listed here. Alarms are those of ops/grafana/alerts.yaml.
"""

import re
import sys
from pathlib import Path

BOOK = Path("docs/operations.md")
ALARMS = Path("ops/grafana/alerts.yaml")
SOURCES = ["launcher/**/*.rs", "trainer/**/*.rs", "model/**/*.rs", "data/**/*.rs"]
# Each is the pieces of one message; every piece is in one literal.
COMPOSED = [
    ("... was killed by ...", "SIGKILL...", ", probably sent by the kernel because memory ran out (see dmesg)"),
    ("SIGBUS...", ": shared memory (/dev/shm) may be full"),
    ("SIGILL...", ": the program was built for another kind of processor"),
    (
        "... has no room: ...; ...",
        ": nothing saved is lost; make room or raise checkpoint.spool_limit and start again to send it on",
    ),
    ("cannot reach ...", "; repair it, remove it from --hostfile, or allow fewer ranks with --min-ranks"),
]
# What matters of Rust's grammar; all else is skipped letter by letter. A lifetime is no character: nothing closes it.
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


def literals(source):
    """The string literals of a source, without those of items under #[cfg(test)]."""
    depth, test_depth = 0, None
    for token in TOKEN.finditer(source):
        if token["test"]:
            test_depth = depth if test_depth is None else test_depth
        elif token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
            # A closed bracket may be that of another attribute; a brace is the end of the item.
            if depth == test_depth and token["close"] == "}":
                test_depth = None
        elif token["end"]:
            if depth == test_depth:
                test_depth = None
        elif test_depth is None and (token["text"] is not None or token["raw"] is not None):
            yield token["text"] if token["raw"] is None else token["raw"]


def strings():
    """All that the programs may say: lines that go on are joined as the compiler joins them."""
    texts = set()
    for pattern in SOURCES:
        for path in sorted(Path().glob(pattern)):
            # Modules of tests that have a file of their own are called so.
            if "tests" not in path.parts and path.name != "tests.rs":
                texts.update(literals(path.read_text()))
    joined = (re.sub(r"\\\n\s*", "", text).replace('\\"', '"') for text in texts)
    # What is put in at run time.
    return [re.sub(r"\{[^{}]*\}", "\0", text) for text in joined]


def is_said(message, texts):
    """True if all parts of the message between dots are in one of the strings, in their order."""
    parts = [part.strip(" ;:,()") for part in message.split("...")]
    wanted = re.compile(".*".join(re.escape(part) for part in parts if part), re.DOTALL)
    return any(wanted.search(text) for text in texts)


def main():
    """Prints what is wrong; the exit code says whether something is."""
    book, texts = BOOK.read_text(), strings()
    messages = first_column(book, "Message")
    composed = {"".join(pieces): pieces for pieces in COMPOSED}
    problems = [f"no message of the run book: {message}" for message in composed if message not in messages]
    for message in messages:
        pieces = composed.get(message, [message])
        problems += [f"no source says: {piece} (of: {message})" for piece in pieces if not is_said(piece, texts)]
    told, alarms = first_column(book, "Alarm"), re.findall(r"- alert: (\w+)", ALARMS.read_text())
    problems += [f"not in the run book: {alarm}" for alarm in alarms if alarm not in told]
    problems += [f"no such alarm: {alarm}" for alarm in told if alarm not in alarms]
    if len(messages) < 30 or len(alarms) < 5:
        problems.append(f"only {len(messages)} messages and {len(alarms)} alarms were found")
    for problem in problems:
        print(f"run_book: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
