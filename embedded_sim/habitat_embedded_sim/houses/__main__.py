"""Make houses from the command line: `python -m habitat_embedded_sim.houses --data_dir data --name embedded`."""

import argparse
import inspect

from habitat_embedded_sim.houses import ensure


def main() -> None:
    """One option per argument of `ensure`, with its default."""
    parser = argparse.ArgumentParser(prog="python -m habitat_embedded_sim.houses", description=__doc__)
    for name, parameter in inspect.signature(ensure).parameters.items():
        many = isinstance(parameter.default, tuple)
        if isinstance(parameter.default, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=parameter.default)
            continue
        kind = float if many else type(parameter.default)
        parser.add_argument(f"--{name}", type=kind, nargs="+" if many else None, default=parameter.default)
    try:
        ensure(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
