"""README.md and docs/: every path, link, name and command that they tell is there. `make docs` checks the rest."""

import ast
import itertools
import re
import shlex

import pytest
from habitat_baselines.config.default import get_config
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.paths import CONFIGS, ROOT
from tests.test_layers import FLOORS

PAGES = {path.relative_to(ROOT): path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]}
FOLDERS = "habitat_vlnr1|tests|benchmarks|configs|embedded_sim|hydra_plugins|requirements|docs"


def found(pattern):
    """(page, match) of a pattern, in all pages."""
    return [(str(page), match) for page, text in PAGES.items() for match in re.findall(pattern, text)]


def test_every_path_exists():
    paths = found(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*[\w/])")
    assert len(paths) > 20
    assert [(page, path) for page, path in paths if not (ROOT / path).exists()] == []


def test_every_source_file_exists():
    """Also where a page leaves `habitat_vlnr1/` out; files that the reader writes have a title."""
    own = {title for _, title in found(r'title="(.*?)"')}
    files = [(page, name) for page, name in found(r"`([\w./]+\.py)[`:]") if name not in own]
    assert [f for f in files if not any((ROOT / folder / f[1]).is_file() for folder in (".", "habitat_vlnr1"))] == []


def test_every_link_leads_to_a_file():
    links = found(r"\]\((?!https?:)([^)#\s]+)")
    assert len(links) > 50
    assert [(page, link) for page, link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def defined_in(body):
    """Names of a module's or class's own statements, with what they stand for."""
    names = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return names


def is_defined(name):
    """Whether `habitat_vlnr1.x.y` is a module, or something in one, without importing it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
        if file is not None:
            break
    node = ast.parse(file.read_text())
    for part in parts[length:]:
        node = defined_in(getattr(node, "body", ())).get(part)
        if node is None:
            return False
    return True


def test_every_dotted_name_exists():
    names = found(r"(?<![\w.])(habitat_vlnr1(?:\.[A-Za-z_]\w*)+)(?![\w/])")
    for page, line in found(r"from (habitat_vlnr1[\w.]* import [\w, ]+)"):
        module, imported = line.split(" import ")
        names += [(page, f"{module}.{name.strip()}") for name in imported.split(",")]
    assert len(names) > 50
    assert [(page, name) for page, name in names if not is_defined(name)] == []


def test_the_picture_of_the_house():
    (picture,) = (picture for _, picture in found(r'(?s)```text title="The house.*?"\n(.*?)```'))
    assert tuple(tuple(line.split()) for line in reversed(picture.splitlines())) == FLOORS


def test_the_api_lists_every_module():
    listed = {name for _, name in found(r"(?m)^::: (\S+)$")}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("habitat_vlnr1/**/*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__")}


def commands():
    """Config name and overrides of every command, but those with a gap for the reader to fill."""
    seen = {}
    for _, line in found(r"(?m)^.*?-m habitat_baselines\.run ((?:.*\\\n)*.*)$"):
        line = line.replace("\\\n", " ")
        if re.search(r"[…<$`|]", line.split(" # ")[0]) or "--config-dir" in line:
            continue
        words = shlex.split(line, comments=True)
        name = next(word.removeprefix("--config-name=") for word in words if word.startswith("--config-name="))
        overrides = [word for word in words if not word.startswith("-")]
        for job in jobs(overrides) if "-m" in words else [tuple(overrides)]:
            seen[name, job] = None
    return list(seen)


def jobs(overrides):
    """The overrides of each job of a sweep, as Hydra reads them: `key=a,b` stands for two."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return itertools.product(
        *(
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [one.input_line]
            for one in parsed
        )
    )


def test_arguments_are_described_one_by_one():
    """`a, b: …` under Args is no parameter for the site, whose strict build then fails."""
    lines = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in sorted((ROOT / "habitat_vlnr1").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        for line in arguments_of(ast.get_docstring(node) or "")
        if not re.match(r"\*{0,2}\w+:", line)
    ]
    assert lines == []


def arguments_of(docstring):
    """The first lines of what a docstring says under Args."""
    _, _, section = docstring.partition("Args:\n")
    return re.findall(r"^ {4}(\S.*)", section.partition("\n\n")[0], re.MULTILINE)


@pytest.mark.slow
def test_every_command_composes():
    """Config names, groups, their choices and all keys are there; what runs is tested elsewhere."""
    assert len(commands()) > 20
    for name, overrides in commands():
        get_config(f"{name}.yaml", list(overrides), CONFIGS)
