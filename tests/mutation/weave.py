"""Copies the sources and plants the faults of faults/ in the copy, each behind the switch of fault_switch.h.

usage: weave.py cpu|cuda [DESTINATION]      without DESTINATION only looks whether all originals are there

A list of faults is a text file of entries in sections; '#' begins a comment.

    [kernels/norm/cpu/norm.cc]

    norm_mean_factor: the mean is too large by a ten-thousandth
    - result.mean = «mean»;
    + mean * A(1.0001)

A section names the file. An entry has a name and what is wrong, lines of the original after '- ' and lines of the fault
after '+ ', which may be missing. The original occurs once in the file, however its words are spaced. What the fault
replaces stands between « and », or is all of the original. It is one of
- statements, which end with ';' and become `{ if (HEDDLE_FAULT(n)) { fault } else { original } }`;
- an expression, which becomes `(HEDDLE_FAULT(n) ? (fault) : (original))`: so a declaration is changed in its
  initializer. It is all that an operator beside it takes, or begins with the operator in front of it, one of
  && || * + -, as the fault then does too.
Several faults may replace the same text, or one a part of another's.
"""
import dataclasses
import pathlib
import re
import subprocess
import sys
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


class FaultError(Exception):
    pass


@dataclasses.dataclass(eq=False)
class Fault:
    name: str
    what: str
    file: str
    original: str = ""
    faulty: str = ""

    @property
    def number(self):
        """What HEDDLE_FAULT is for this fault. It depends on the name alone, so a new fault changes no other file."""
        return zlib.crc32(self.name.encode()) & 0x3FFFFFFF


def read_faults(kind):
    """The faults of all lists of a kind, cpu or cuda."""
    faults = []
    for path in sorted(ROOT.glob(f"tests/mutation/faults/{kind}_*.txt")):
        file = None
        for index, line in enumerate(path.read_text().splitlines(), 1):
            place = f"{path.name}:{index}"
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith("["):
                file = line.strip()[1:-1]
            elif line[0] == "-":
                faults[-1].original += line[2:] + "\n"
            elif line[0] == "+":
                faults[-1].faulty += line[2:] + "\n"
            else:
                name, colon, what = line.partition(": ")
                if file is None or not colon:
                    raise FaultError(f"{place}: expected 'name: what is wrong' in a section, found '{line}'")
                faults.append(Fault(name, what, file))
    for key in ("name", "number"):
        values = [getattr(fault, key) for fault in faults]
        for fault, value in zip(faults, values):
            if values.count(value) > 1:
                raise FaultError(f"several faults have the {key} {value} of '{fault.name}'")
    return faults


def span_of(fault, text):
    """The characters of `text` that the fault replaces."""
    before, mark, rest = fault.original.partition("«")
    replaced, _, after = rest.partition("»") if mark else (before, "", "")
    parts = ["", replaced, ""] if not mark else [before, replaced, after]
    pattern = "".join(f"({part})" for part in map(pattern_of, parts))
    matches = list(re.finditer(pattern, text))
    if len(matches) != 1 or not replaced.strip():
        raise FaultError(f"fault '{fault.name}': its original occurs {len(matches)} times in {fault.file}, expected once")
    return matches[0].span(2)


def pattern_of(part):
    """Matches the words of `part` with any space between them, and without that around them."""
    words = [re.escape(word) for word in part.split()]
    return r"\s*" * part[:1].isspace() + r"\s+".join(words) + r"\s*" * part[-1:].isspace()


def weave(text, faults):
    """`text` with all faults, which are all of one file."""
    choices, errors = {}, []
    for fault in faults:
        try:
            choices.setdefault(span_of(fault, text), []).append(fault)
        except FaultError as error:
            errors.append(str(error))
    if errors:
        raise FaultError("\n  ".join(errors))
    spans = sorted(choices, key=lambda span: (span[0], -span[1]))

    def render(begin, end):
        out, at = "", begin
        while spans and spans[0][0] < end:
            span = spans.pop(0)
            if span[1] > end:
                raise FaultError(f"fault '{choices[span][0].name}' and another overlap in {faults[0].file}")
            out, at = out + text[at:span[0]] + choose(choices[span], render(*span)), span[1]
        return out + text[at:end]

    return render(0, len(text))


def choose(faults, original):
    """`original`, or what one of the faults has in its place."""
    original = original.strip()
    faulty = {fault: fault.faulty.strip() for fault in faults}
    is_statement = original[-1] == ";" or (original[-1] == "}" and ";" in original)
    front = ""
    operator = None if is_statement else re.match(r"&&|\|\||\*|[+-](?![+=-])", original)
    if operator and operator[0] in "+-" and all(text[:1] in list("+-") for text in faulty.values()):
        front = "+"  # signs stay, as those of the terms
    elif operator and all(text.startswith(operator[0]) for text in faulty.values()):
        front = operator[0]
        original = original.removeprefix(front)
        faulty = {fault: text.removeprefix(front) for fault, text in faulty.items()}
    for fault, text in faulty.items():
        if is_statement:
            original = f"{{ if (HEDDLE_FAULT({fault.number})) {{ {text} }} else {{ {original} }} }}"
        elif text:
            original = f"(HEDDLE_FAULT({fault.number}) ? ({text}) : ({original}))"
        else:
            raise FaultError(f"fault '{fault.name}' replaces an expression by nothing")
    return front + original


def write_if_changed(path, content):
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def planted(faults):
    """The texts of the files that have faults, with all of these."""
    texts, errors = {}, []
    for file in dict.fromkeys(fault.file for fault in faults):
        in_file = [fault for fault in faults if fault.file == file]
        if not (ROOT / file).is_file():
            errors += [f"fault '{fault.name}': there is no file {file}" for fault in in_file]
            continue
        try:
            texts[file] = weave((ROOT / file).read_text(), in_file)
        except FaultError as error:
            errors.append(str(error))
    if errors:
        raise FaultError("\n  ".join(errors))
    return texts


def copy_sources(destination, texts):
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        content = texts[name].encode() if name in texts else (ROOT / name).read_bytes()
        write_if_changed(destination / name, content)
    for path in destination.rglob("*"):
        if path.is_file() and str(path.relative_to(destination)) not in files:
            path.unlink()


def main(kind, destination=None):
    faults = read_faults(kind)
    texts = planted(faults)
    if destination is not None:
        copy_sources(pathlib.Path(destination), texts)
    print(f"{'planted' if destination else 'checked'} {len(faults)} faults in {len(texts)} files")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except FaultError as error:
        sys.exit(f"weave: {error}")
