"""Coverage-guided fuzzing of what reads files from outside (Atheris, libFuzzer), for minutes instead of examples.

    pip install atheris          # not among the requirements; Python 3.11, Linux
    python -m tests.fuzz.coverage_guided sharegpt 180

It runs one target of `tests.fuzz.targets` for so many seconds, starting from its whole files, and ends at the first
input that is answered with anything but a result or an error of our own, within 10 s and 2 GB: the input is then in
`crash-…`, `timeout-…` or `oom-…` here.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["habitat_vlnr1", "json"]):
    from tests.fuzz.targets import SEEDS, TARGETS, attempt, use_seeds


def main(name: str, seconds: str) -> None:
    """Fuzz one target for so many seconds."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
    with atheris.instrument_imports(include=["habitat_vlnr1", "json"]):
        use_seeds(folder)
        attempt(name, SEEDS[name][0], folder)  # imports what the target needs
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(content)
    counts = {True: 0, False: 0}

    def one(content: bytes) -> None:
        counts[attempt(name, content, folder)] += 1
        if (total := sum(counts.values())) % 1000 == 0:
            print(f"{name}: {total} inputs, {counts[True]} read, {counts[False]} refused", flush=True)

    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"python -m tests.fuzz.coverage_guided {{{', '.join(TARGETS)}}} SECONDS")
    main(*sys.argv[1:])
