"""A ROS 2 node that asks the policy server and drives a robot step by step: a start to change, not a product.

With a server running, on the robot, where ROS 2 is (`client.py` is habitat_vlnr1/serving/client.py, copied):

    pip install websockets msgpack
    .venv/bin/python examples/ros2_node.py --ros-args -p server:=ws://gpu:8000 -p instruction:="Stop at the sofa."

It drives by time, at low speed: put your own controller in `drive`, and an obstacle stop below it.
"""

import math

import rclpy
from client import PolicyClient
from geometry_msgs.msg import Twist
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage

SPEED, TURN_SPEED = 0.2, 0.4  # m/s and rad/s
SETTLE = 0.5  # seconds to stand still before the next frame is taken


class Navigator(Node):
    def __init__(self) -> None:
        super().__init__("vlnr1")
        self.instruction = self.declare_parameter("instruction", "").value
        self.client = PolicyClient(self.declare_parameter("server", "ws://localhost:8000").value)  # VLNR1_TOKEN
        self.velocity = self.create_publisher(Twist, "cmd_vel", 1)
        self.create_subscription(CompressedImage, "camera/image/compressed", self.see, 1)
        self.until = self.now()
        self.command = Twist()
        self.timer = self.create_timer(0.05, self.drive)
        self.done = False

    def now(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def see(self, image: CompressedImage) -> None:
        """A frame is shown once the last action has been carried out: one per step, as in training."""
        if self.done or self.now() < self.until + SETTLE:
            return
        action = self.client.act(bytes(image.data), self.instruction)["action"]
        about, self.command = self.client.about, Twist()
        self.get_logger().info(about["words"][action])
        self.done, seconds = action == 0, 0.0
        if action == 1:
            self.command.linear.x, seconds = SPEED, about["forward_step"] / SPEED
        elif action:
            self.command.angular.z = TURN_SPEED if action == 2 else -TURN_SPEED
            seconds = math.radians(about["turn_angle"]) / TURN_SPEED
        self.until = self.now() + seconds

    def drive(self) -> None:
        self.velocity.publish(self.command if self.now() < self.until else Twist())


if __name__ == "__main__":
    rclpy.init()
    rclpy.spin(Navigator())
