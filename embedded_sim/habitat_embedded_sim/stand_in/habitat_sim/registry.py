"""Stand-in for `habitat_sim.registry`: actions by name, own ones included.

    @habitat_sim.registry.register_move_fn(body_action=True)
    class StrafeLeft(habitat_sim.agent.SceneNodeControl):
        def __call__(self, scene_node, actuation_spec):
            scene_node.translate_local(mn.Vector3(-actuation_spec.amount, 0.0, 0.0))

registers the action "strafe_left".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from habitat_embedded_sim.unsupported import Partial

if TYPE_CHECKING:
    from .agent.controls import SceneNodeControl


def _camel_to_snake(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


class _Registry(Partial):
    """Only actions are registered here; sensor noise models are outside the embedded simulator."""

    _mapping: ClassVar[defaultdict[str, dict[str, Any]]] = defaultdict(dict)

    @classmethod
    def register_move_fn(
        cls,
        controller: type[SceneNodeControl] | None = None,
        *,
        name: str | None = None,
        body_action: bool | None = None,
    ) -> Callable[..., Any]:
        """Register a control, as a decorator or by a call. `name`: the class's in snake case where None;
        `body_action`: whether it moves the agent's body (else each of its sensors)."""
        assert body_action is not None, "body_action must be explicitly set to True or False"
        from .agent.controls.controls import SceneNodeControl

        def register(controller: type[SceneNodeControl]) -> type[SceneNodeControl]:
            assert issubclass(controller, SceneNodeControl), (
                "All controls must inherit from habitat_sim.agent.SceneNodeControl"
            )
            cls._mapping["move_fn"][name or _camel_to_snake(controller.__name__)] = controller(body_action)
            return controller

        return register if controller is None else register(controller)

    @classmethod
    def get_move_fn(cls, name: str) -> SceneNodeControl | None:
        """The control of that name."""
        return cls._mapping["move_fn"].get(name)


registry = _Registry()
