"""Stand-in for `habitat_sim.physics`: importable only."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

add_placeholders(
    globals(),
    "ArticulatedObjectManager CollisionGroupHelper CollisionGroups JointMotorSettings JointType "
    "ManagedArticulatedObject ManagedBulletArticulatedObject ManagedRigidObject MotionType RaycastResults "
    "RigidConstraintSettings RigidConstraintType RigidObjectManager VelocityControl",
)
__getattr__ = missing_attribute(__name__)
