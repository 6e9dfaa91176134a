"""Links from a page into the repository (`../benchmarks/grpo.py`) become pages of the site that show the file.

MkDocs knows nothing outside docs/. With this, such a link works in a checkout and in the built site, and the strict
build fails where there is no such file.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}


def meant(link, page_uri):
    """The path in the repository that a page's link leads to."""
    page = page_uri.removeprefix("repository/") if page_uri.startswith("repository/") else f"docs/{page_uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def page_of(path):
    """Where in the site a file of the repository is shown."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path if path.endswith('.md') else path + '.md'}"


def shown(root, path):
    """The page's Markdown."""
    text = (root / path).read_text()
    if not path.endswith(".md"):
        text = f"# `{path}`\n\n``````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n``````\n"
    return f"---\nsearch: {{exclude: true}}\n---\n{text}"


def on_files(files, config):
    root = Path(config.config_file_path).parent
    pages = [file for file in files.documentation_pages() if file.inclusion.is_included()]
    links = {meant(link, file.src_uri) for file in pages for link in LINK.findall(file.content_string)}
    for path in sorted(path for path in links if not path.startswith("docs/") and (root / path).is_file()):
        content, hidden = shown(root, path), InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, page_of(path), content=content, inclusion=hidden))
    return files


def on_page_markdown(markdown, page, config, files):
    def link(match):
        path = page_of(meant(match[1], page.file.src_uri))
        if files.get_file_from_path(path) is None:
            return match[1]  # MkDocs says what is wrong with it
        return posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(link, markdown)
