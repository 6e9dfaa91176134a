"""Imitation learning on VLN-Ego as VLN-CE trains Seq2Seq and CMA: whole episodes, teacher forcing, inflection weights.

`vlnr1_il` teaches `vlnr1.il.policy`, any `InstructedPolicy`, what the expert did at every step of the exported
episodes. The configured observation transforms run on them as they do in the simulator.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gym import spaces
from habitat_baselines.common.obs_transformers import (
    apply_obs_transforms_batch,
    apply_obs_transforms_obs_space,
    get_active_obs_transforms,
)
from habitat_baselines.common.tensorboard_utils import get_writer
from habitat_baselines.rl.models.rnn_state_encoder import build_pack_info_from_episode_ids, build_rnn_build_seq_info
from habitat_baselines.utils.common import cosine_decay
from omegaconf import DictConfig
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import check_sources, registered_policy
from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.frame_files import decode_picture, read_picture
from habitat_vlnr1.observations import CLOCK, INSTRUCTION, encode_text
from habitat_vlnr1.policies.habitat_checkpoint import newest_pth, read_pth, write_pth
from habitat_vlnr1.records import Episode, RecordError, VLNEgo
from habitat_vlnr1.trainers.base import VLNR1Trainer, only_trainer, register_trainer, use_cores
from habitat_vlnr1.trainers.export import export_if_missing

SPLIT = "train"
IGNORED = -100
"""In the place of an action that is not taught."""
Steps = dict[str, Any]
"""Observations `{key: [S, …]}`, the `actions` [S] that were done and those that are `taught` [S] (IGNORED: none), and
`lengths` [B] of B episodes, one after the other."""


@register_trainer("vlnr1_il")
class ImitationTrainer(VLNR1Trainer):
    """Teaches `vlnr1.il.policy` on `vlnr1.data.sources` into Habitat's checkpoint folder, then evaluates."""

    @property
    def cpu_threads(self) -> int | None:
        return self.config.vlnr1.il.cpu_threads

    def train(self) -> None:
        config = self.config
        check_sources(config, [(source, SPLIT) for source in config.vlnr1.data.sources])
        if config.vlnr1.data.source in config.vlnr1.data.sources:
            export_if_missing(self, config, SPLIT)
        egos = [VLNEgo(Path(config.vlnr1.data.root) / source / SPLIT) for source in config.vlnr1.data.sources]
        for ego in egos:
            ego.check_frames()
        with only_trainer(config.habitat_baselines.checkpoint_folder):
            Imitation(config, Episodes(egos, config)).fit()
        if config.vlnr1.il.evaluate:
            self.eval()


class Episodes(Dataset):
    """Exported episodes as the observations that the simulator would have given.

    Args:
        egos: opened folders.
        config: which observations (`vlnr1.observations`; depth only if it was exported).

    Raises:
        RecordError: depth is asked for but was not exported.
    """

    def __init__(self, egos: Sequence[VLNEgo], config: DictConfig):
        self.places = [(ego.root, episode) for ego in egos for episode in ego.episodes]
        self.max_bytes = config.habitat.task.lab_sensors.vlnr1_instruction.max_bytes
        self.depth = "depth" in config.vlnr1.observations
        for ego in egos:
            if self.depth and "depth" not in ego.meta:
                raise RecordError(
                    f"{ego.root} was exported without depth: export to another vlnr1.data.source with "
                    "vlnr1/sensors=[expert,depth], or train without it"
                )

    @property
    def instructions(self) -> list[str]:
        return [episode.instruction for _, episode in self.places]

    @property
    def space(self) -> spaces.Dict:
        """The observation space before any transform."""
        first = self[0]
        box = {key: spaces.Box(0, 255, value.shape[1:], np.uint8) for key, value in first.items() if key == "rgb"}
        box[INSTRUCTION] = spaces.Box(0, 255, (self.max_bytes,), np.uint8)
        box[CLOCK] = spaces.Box(0, np.iinfo(np.int64).max, (2,), np.int64)
        if self.depth:
            box["depth"] = spaces.Box(0, 1, first["depth"].shape[1:], np.float32)
        return spaces.Dict(box)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Steps:
        root, episode = self.places[index]
        steps = range(len(episode.actions))
        told = torch.from_numpy(encode_text(episode.instruction, self.max_bytes))
        seen = {
            "rgb": torch.stack([_pixels(root / episode.frame(step)) for step in steps]),
            INSTRUCTION: told.expand(len(steps), -1),
            CLOCK: torch.tensor([[index + 1, step] for step in steps]),
            "actions": torch.tensor(episode.actions),
            "taught": torch.full((len(steps),), IGNORED),
        }
        for step in episode.steps:  # of a DAgger round, those with a label, which need not be what was done
            seen["taught"][step] = int(episode.answer(step, 1)[0])
        if self.depth:
            seen["depth"] = torch.stack([_depth(root, episode, step) for step in steps])
        return seen


def _pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(decode_picture(read_picture(path)))


def _depth(root: Path, episode: Episode, step: int) -> torch.Tensor:
    path = root / episode.depth(step)
    try:
        with Image.open(io.BytesIO(read_picture(path))) as image:
            return torch.from_numpy(np.array(image, dtype=np.float32)[..., None] / 65535)
    except OSError as error:
        raise RecordError(f"{path}: no readable depth image ({error}); delete the folder and export again") from None


def join(episodes: Sequence[Steps]) -> Steps:
    """Episodes one after the other."""
    batch = {key: torch.cat([episode[key] for episode in episodes]) for key in episodes[0]}
    batch["lengths"] = torch.tensor([len(episode["actions"]) for episode in episodes])
    return batch


def order(count: int, batch_size: int, seed: int, steps: range) -> Iterator[list[int]]:
    """Which episodes are in each of the batches `steps`, through epochs that are shuffled each in its own way."""
    per_epoch = -(-count // batch_size)
    for step in steps:
        epoch, batch = divmod(step, per_epoch)
        shuffled = np.random.default_rng((seed, epoch)).permutation(count)
        yield shuffled[batch * batch_size : (batch + 1) * batch_size].tolist()


def inflection_weights(
    actions: torch.Tensor, lengths: torch.Tensor, weight: float, taught: torch.Tensor
) -> torch.Tensor:
    """[S], which sum to 1 over each episode: a step whose action is another than the one before counts `weight` times.

    The first step of an episode counts as one too, as in VLN-CE.

    Args:
        actions: [S] what is taught, or was done at steps that are not.
        taught: bool [S]; a step that is not taught (of a DAgger round) counts nothing.
    """
    weights = torch.ones(len(actions))
    weights[1:][actions[1:] != actions[:-1]] = weight
    starts = lengths.cumsum(0) - lengths
    weights[starts] = weight
    weights[~taught] = 0
    episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return weights / torch.zeros(len(lengths)).index_add_(0, episode, weights).clamp(min=1)[episode]


class Imitation:
    """The optimisation. A run that was stopped goes on from its newest checkpoint with the same batches."""

    def __init__(self, config: DictConfig, data: Episodes):
        self.config, self.il, self.data = config, config.vlnr1.il, data
        self.folder = Path(config.habitat_baselines.checkpoint_folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        use_cores(self.il.cpu_threads)
        self.transforms = get_active_obs_transforms(config)
        policy_class = registered_policy("vlnr1.il.policy", self.il.policy)
        torch.manual_seed(config.habitat.seed)
        space = apply_obs_transforms_obs_space(data.space, self.transforms)
        self.policy = policy_class.from_config(config, space, spaces.Discrete(len(Action)))
        self.policy.learn_words(data.instructions)
        self.policy.to(self.device).train()
        self.optimizer = torch.optim.Adam(
            [weight for weight in self.policy.parameters() if weight.requires_grad], lr=self.il.learning_rate
        )
        self.step, self.steps = 0, self.il.epochs * -(-len(data) // self.il.batch_size)

    def fit(self) -> None:
        """Train to the end, or say that it is reached."""
        self._resume()
        if self.step >= self.steps:
            print(f"Imitation is finished: {newest_pth(self.folder)}")
            return
        batches = DataLoader(
            self.data,
            batch_sampler=list(
                order(len(self.data), self.il.batch_size, self.config.habitat.seed, range(self.step, self.steps))
            ),
            collate_fn=join,
            num_workers=self.il.workers,
        )
        frames = sum(len(episode.actions) for _, episode in self.data.places)
        print(f"{self.il.policy}: {self.steps} batches of {len(self.data)} episodes, {frames} frames")
        logged: list[dict[str, float]] = []
        with (
            get_writer(self.config, purge_step=self.step) as writer,
            tqdm(total=self.steps, initial=self.step, desc="imitation", unit="batch") as bar,
        ):
            for batch in batches:
                logged.append(self.update(batch))
                self.step += 1
                bar.update()
                if self.step % self.il.log_steps == 0 or self.step == self.steps:
                    means = {key: float(np.mean([row[key] for row in logged])) for key in logged[0]}
                    for key, value in means.items():
                        writer.add_scalar(f"il/{key}", value, self.step)
                    bar.set_postfix({key: f"{value:.3f}" for key, value in means.items()}, refresh=False)
                    logged.clear()
                if self.step % self.il.save_steps == 0 or self.step == self.steps:
                    self._save()

    def update(self, batch: Steps) -> dict[str, float]:
        """One step down the gradient; returns loss and how often the expert's action was the likeliest."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.il.learning_rate * cosine_decay(self.step / self.steps)
        taught = batch["taught"].to(self.device)
        logits = self.logits(batch)
        known = batch["taught"] != IGNORED
        told = torch.where(known, batch["taught"], batch["actions"])
        weights = inflection_weights(told, batch["lengths"], self.il.inflection_weight, known).to(self.device)
        losses = F.cross_entropy(logits, taught, ignore_index=IGNORED, reduction="none")
        loss = (losses * weights).sum() / len(batch["lengths"])
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.il.max_grad_norm)
        if not torch.isfinite(loss + norm):
            last = newest_pth(self.folder)
            raise CheckpointError(
                f"batch {self.step + 1}: loss {loss.item():g}, gradient norm {norm.item():g}: training has diverged "
                f"and stops; the last good checkpoint is {last}. A lower vlnr1.il.learning_rate may help"
            )
        self.optimizer.step()
        right = (logits.argmax(1) == taught)[taught != IGNORED]
        return {"loss": loss.item(), "accuracy": right.float().mean().item()}

    def logits(self, batch: Steps) -> torch.Tensor:
        """[S, actions]: what the policy thinks of every action while it is led along the expert's way."""
        lengths = batch["lengths"].numpy()
        rollout = np.repeat(np.arange(len(lengths)), lengths)
        step = batch[CLOCK][:, 1].numpy()
        observations = {
            key: value.to(self.device) for key, value in batch.items() if key not in ("actions", "taught", "lengths")
        }
        uid = torch.from_numpy(rollout + self.step * self.il.batch_size + 1)  # new, so that no old history is taken up
        observations[CLOCK] = torch.stack([uid, batch[CLOCK][:, 1]], 1).to(self.device)
        observations = apply_obs_transforms_batch(observations, self.transforms)
        sequences = None  # as Habitat has it: a batch of single steps has no sequences
        if len(step) > len(lengths):
            info = build_pack_info_from_episode_ids(np.zeros_like(rollout), rollout, step)
            sequences = build_rnn_build_seq_info(self.device, info)
        hidden = torch.zeros(len(lengths), *self.policy.hidden_state_shape, device=self.device)
        masks = torch.from_numpy(step > 0).unsqueeze(1).to(self.device)
        before = batch["actions"].roll(1).unsqueeze(1).to(self.device)
        features, _, _ = self.policy.net(observations, hidden, before, masks, sequences)
        return self.policy.action_distribution(features).logits

    def _resume(self) -> None:
        last = newest_pth(self.folder)
        if last is None:
            return
        try:
            checkpoint = read_pth(last)
        except ValueError as broken:
            if len(list(self.folder.glob("ckpt.*.pth"))) == 1:
                raise CheckpointError(f"{broken}. No older one is there: delete it to start over") from None
            aside = last.rename(last.with_name(f"broken-{last.name}"))
            print(f"{broken}. Going on from the one before; the broken one is now {aside}")
            return self._resume()
        try:
            self.policy.load_state_dict(checkpoint["state_dict"])
            self.optimizer.load_state_dict(checkpoint["optim_state"])
            self.step = checkpoint["extra_state"]["step"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise VLNR1Error(
                f"{last} is not of this policy and data ({str(error).splitlines()[-1].strip()}); "
                "choose another vlnr1.run_dir"
            ) from None

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "state_dict": self.policy.state_dict(),
            "config": self.config,
            "extra_state": {"step": self.step},
            "optim_state": self.optimizer.state_dict(),
        }
        write_pth(self.folder / f"ckpt.{self.step}.pth", checkpoint)
        numbered = sorted(self.folder.glob("ckpt.*.pth"), key=lambda file: int(file.name.split(".")[1]))
        for old in numbered[: -self.il.keep_checkpoints]:
            old.unlink()
