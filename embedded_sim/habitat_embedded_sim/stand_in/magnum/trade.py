"""Stand-in for `magnum.trade`: Habitat-Lab makes an `ImporterManager` at import and uses it in rearrangement."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute, needs_real


class ImporterManager:
    """May be made; any use of it needs the real Magnum."""

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        raise needs_real(f"magnum.trade.ImporterManager.{name}")


add_placeholders(globals(), "MeshData")
__getattr__ = missing_attribute(__name__)
