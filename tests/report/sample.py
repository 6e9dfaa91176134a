"""An evaluation's results as files, without an evaluation: two policies in a room, with frames and answers."""

import math

import numpy as np

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_log import EpisodeLog, episode_line
from habitat_vlnr1.report.recording import WalkRecorder
from habitat_vlnr1.results import summarise, write_json

SPACE = ActionSpace(0.5, 30)
PROTOCOL = {"name": "toy", "forward_step": 0.5, "turn_angle": 30.0, "success_distance": 1.0}
BREAK = "document.title='broken'"
EVIL = f'<img src=x onerror="{BREAK}"></script><script>{BREAK}</script> & go <b>left</b>'
WORDS = ["Go to the red sofa and stop.", "Walk past the bed, then stop at the lamp.", EVIL]


def topdown():
    free = np.zeros((120, 160), bool)
    free[10:110, 10:90] = free[50:70, 80:150] = True
    return {"free": free, "origin": [-4.0, -3.0], "meters_per_pixel": 0.05}


def frame(seed, step):
    picture = np.full((60, 80, 3), 40 + 12 * step % 200, np.uint8)
    picture[20:40, 10 + 3 * step % 60 :][:, :12] = [220, 30 + 60 * (seed % 3), 30]
    return picture


def walk(turns, length):
    """Actions and poses [x, y, z, heading] of a walk along x that turns at first."""
    actions = [2] * turns + [1] * length + [0]
    pose, poses = [0.0, 0.0, 0.0, -math.pi / 2], [[0.0, 0.0, 0.0, -math.pi / 2]]
    for action in actions:
        x, y, z, heading = pose
        if action == 1:
            x, z = x - 0.5 * math.sin(heading), z - 0.5 * math.cos(heading)
        pose = [x, y, z, heading + math.radians(30) * (action == 2)]
        poses.append(pose)
    return actions, poses


def write_results(home, policies, budget=1_000_000, episodes=6, split="val"):
    """`<home>/<policy>/<split>` for {policy: turns at the start}: who turns little comes near the goal at x = 3 m."""
    for number, (policy, turns) in enumerate(policies.items()):
        log = EpisodeLog(home / policy / split, {"policy": policy})
        keys = [("scenes/room.glb" if i % 2 else "scenes/hall.glb", str(i)) for i in range(episodes)]
        recorder = WalkRecorder(log.folder, budget, keys)
        for i, key in enumerate(keys):
            actions, poses = walk(turns * (i % 3), 6 + number)
            facts = {"episode_id": key[1], "reference_path": [[0, 0, 0], [3, 0, 0]], "goal": [3, 0, 0], "radius": 1.0}
            record = recorder.begin(key, key[0], topdown, facts)
            for step in range(len(actions)):
                if record:
                    record.add(frame(i, step), SPACE.format(actions[step : step + 2]) if step % 2 == 0 else None)
            if record:
                record.write()
            error = math.dist(poses[-1][:3], [3, 0, 0])
            metrics = {"SR": float(error < 1), "OS": float(error < 1.6), "NE": error, "SPL": 0.5, "TL": 3.0}
            line = {"episode_id": key[1], "scene_id": key[0], "instruction": WORDS[i % 3], "unusable": None}
            line |= {"steps": len(actions), "seconds": 1.0, "invalid_answers": 0, "stopped": True, "actions": actions}
            line |= {"positions": [pose[:3] for pose in poses], "headings": [pose[3] for pose in poses]}
            log.append(episode_line(metrics, **line))
        write_json(log.folder / "summary.json", summarise(list(log.lines.values()), policy, split, PROTOCOL))
        log.close()
    return home
