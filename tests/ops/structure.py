"""Checks that files of a crate do not import each other in a circle, and that every file named in a document exists.

A path such as `crate::a::b::Item` is resolved to the file that defines the item, through re-exports. Re-exports of a
module's own children are ignored, and so are test modules.
"""

import re
import sys
from pathlib import Path

CRATES = ["model", "data/place", "data/store", "data", "trainer/collective", "trainer/checkpoint", "trainer", "launcher/protocol", "launcher"]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *(str(path) for path in Path("docs").glob("*.md"))]

COMMENT = re.compile(r"//[^\n]*")
TEXT = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\n]*\]\s*)*mod tests\b")
USE = re.compile(r"(?P<public>pub(?:\([^)]*\))?\s+)?use\s+(?P<tree>[^;]+);")
CHILD = re.compile(r"\bmod\s+(\w+)\s*;")
PATH = re.compile(r"\b((?:crate|super|self)(?:::\w+)+)")
# Names in documents that are placeholders, files that the programs write, or files of the official code.
EXAMPLES = {"NAME/tests.rs", "GROUP/NAME.rs", "step-00012000/", "main_cache.py", "util/convert_h5.py"}
# A path in backquotes that looks like a file or folder of this repository.
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:rs|sh|py|yaml|toml|md|svg|sbatch)|(?:[\w.-]+/)+)`")


def leaves(tree, prefix=()):
    """Yields the paths of a use tree, each as a tuple of names."""
    depth, start, items = 0, 0, []
    for index, character in enumerate(tree):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            items.append(tree[start:index])
            start = index + 1
    items.append(tree[start:])
    for item in filter(None, (item.strip() for item in items)):
        group = re.fullmatch(r"([^{]*)\{(.*)\}", item, re.DOTALL)
        if group:
            yield from leaves(group[2], (*prefix, *filter(None, group[1].strip().split("::"))))
        else:
            yield (*prefix, *re.sub(r"\s+as\s+\w+", "", item).split("::"))


class Crate:
    """The files of a crate by module, with the paths in them."""

    def __init__(self, root):
        self.files, self.paths, self.children, self.names = {}, {}, {}, {}
        for path in sorted(root.rglob("*.rs")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] == "bin":
                continue
            module = parts[:-1] if parts[-1] in ("mod", "lib") else parts
            self.files[module] = path
            self.read(module, path.read_text())
        for module, paths in self.paths.items():
            absolute = (self.absolute(module, path) for path, _ in paths)
            self.names[module] = {path[-1]: path for path in absolute if path}

    def read(self, module, text):
        text = TEXT.sub('""', COMMENT.sub("", text))
        tests = TESTS.search(text)
        text = text[: tests.start()] if tests else text
        paths = [(leaf, bool(use["public"])) for use in USE.finditer(text) for leaf in leaves(use["tree"])]
        paths += [(tuple(path.split("::")), False) for path in PATH.findall(USE.sub("", text))]
        self.paths[module] = paths
        self.children[module] = set(CHILD.findall(text))

    def absolute(self, module, path):
        """Returns the path from the root of the crate, or None if it is in another crate."""
        if path[0] == "crate":
            return path[1:]
        if path[0] == "self":
            return module + path[1:]
        base = module
        while path and path[0] == "super":
            base, path = base[:-1], path[1:]
        if base != module:
            return base + path
        return module + path if path[0] in self.children[module] else None

    def target(self, path, seen=frozenset()):
        """Returns the module whose file defines the item of a path."""
        for length in range(len(path), -1, -1):
            module = path[:length]
            if module not in self.files:
                continue
            if length < len(path):
                name = path[length]
                other = self.names[module].get(name)
                if other and other != path[: length + 1] and (module, name) not in seen:
                    return self.target(other + path[length + 1 :], seen | {(module, name)})
            return module
        return None

    def imports(self):
        """Returns the modules that each module depends on."""
        graph = {module: set() for module in self.files}
        for module, paths in self.paths.items():
            for path, public in paths:
                absolute = self.absolute(module, path)
                target = None if absolute is None else self.target(absolute)
                is_own_child = target is not None and target[: len(module)] == module
                if target is not None and target != module and not (public and is_own_child):
                    graph[module].add(target)
        return graph


def circle(graph):
    """Returns modules that import each other in a circle, in order, or None if there are none."""
    done, trail = set(), []

    def visit(module):
        if module in trail:
            return trail[trail.index(module) :] + [module]
        if module in done:
            return None
        trail.append(module)
        for other in sorted(graph[module]):
            found = visit(other)
            if found:
                return found
        trail.pop()
        done.add(module)
        return None

    return next(filter(None, map(visit, sorted(graph))), None)


def missing_files(document):
    """Yields the files named in a document that exist neither at the root nor in one of the usual folders."""
    folders = [Path(folder) for folder in (".", "configs", "docs", "ops/slurm", "tests", *CRATES)]
    for name in sorted(set(NAMED.findall(Path(document).read_text())) - EXAMPLES):
        if not any((folder / name).exists() for folder in folders):
            yield name


def main():
    """Prints all problems and returns whether there are any."""
    problems = []
    for crate in CRATES:
        found = circle(Crate(Path(crate) / "src").imports())
        if found:
            names = " -> ".join("::".join(module) or "lib.rs" for module in found)
            problems.append(f"{crate}: files import each other in a circle: {names}")
    for document in DOCUMENTS:
        problems += [f"{document} names {name}, which does not exist" for name in missing_files(document)]
    print("\n".join(problems) or f"{len(CRATES)} crates have no circles of imports, and all files in the documents exist")
    return 1 if problems else 0


sys.exit(main())
