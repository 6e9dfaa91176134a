"""What the recurrent policies read with: an LSTM for the instruction, a convolutional network for each camera.

All sizes come from `vlnr1.net` (configs/trainer/vlnr1/net).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gym import spaces
from habitat_baselines.rl.ddppo.policy import resnet
from habitat_baselines.rl.ddppo.policy.resnet_policy import ResNetEncoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import INSTRUCTION, decode_text
from habitat_vlnr1.policies.habitat_checkpoint import read_pth
from habitat_vlnr1.policies.vlnce.vocabulary import PAD, Vocabulary

CAMERAS = ("rgb", "depth")


class ReadWords(NamedTuple):
    """An instruction as `InstructionEncoder` reads it."""

    states: Tensor  # [N, T, D], one per word
    mask: Tensor  # bool [N, T], True where there is a word
    last: Tensor  # [N, D], the whole instruction


class InstructionEncoder(nn.Module):
    """Word embeddings and an LSTM over them. The vocabulary is part of the module's state, hence of a checkpoint.

    Args:
        net: `vocabulary_size`, `word_size`, `instruction_size` (each direction) are read.
        bidirectional: read the instruction backwards too.
    """

    def __init__(self, net: Any, bidirectional: bool):
        super().__init__()
        self.size = net.vocabulary_size
        self.vocabulary = Vocabulary(())
        self.embedding = nn.Embedding(net.vocabulary_size, net.word_size, padding_idx=PAD)
        self.lstm = nn.LSTM(net.word_size, net.instruction_size, batch_first=True, bidirectional=bidirectional)
        self.output_size = net.instruction_size * (2 if bidirectional else 1)

    def get_extra_state(self) -> Tensor:
        """The vocabulary as JSON in UTF-8: what `torch.load` takes with weights_only."""
        return torch.tensor(list(self.vocabulary.to_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.vocabulary = Vocabulary.from_json(bytes(state.tolist()).decode())

    def forward(self, told: Tensor) -> ReadWords:
        """Read uint8 [N, max_bytes]. Equal rows, such as the steps of one episode, are read once."""
        if not self.vocabulary.words:
            raise VLNR1Error(
                "the policy knows no words: the training split of habitat.dataset, from which they come, is missing; "
                "make it, or load a checkpoint"
            )
        different, row = torch.unique(told, dim=0, return_inverse=True)
        numbers = [self.vocabulary.encode(decode_text(text)) or [PAD] for text in different.cpu().numpy()]
        lengths = torch.tensor([len(line) for line in numbers])
        padded = torch.full((len(numbers), int(lengths.max())), PAD)
        for line, into in zip(numbers, padded, strict=True):
            into[: len(line)] = torch.tensor(line)
        packed = pack_padded_sequence(
            self.embedding(padded.to(told.device)), lengths, batch_first=True, enforce_sorted=False
        )
        states, (last, _) = self.lstm(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        mask = torch.arange(states.shape[1], device=told.device) < lengths.to(told.device)[:, None]
        return ReadWords(states[row], mask[row], last.movedim(0, 1).flatten(1)[row])


class SmallCNN(nn.Module):
    """Three strided convolutions on an image halved in size, as Habitat's ResNetEncoder halves it: for small images.

    Args:
        space: [H, W, C], uint8 or float in 0 … 1.
        planes: of the first layer; the last has twice as many.
    """

    def __init__(self, space: spaces.Box, planes: int):
        super().__init__()
        height, width, channels = space.shape
        self.scale = 1 / 255 if space.dtype == np.uint8 else 1.0
        sizes = [(channels, planes, 5), (planes, 2 * planes, 3), (2 * planes, 2 * planes, 3)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, kernel, 2, kernel // 2), nn.GroupNorm(1, b), nn.ReLU(True))
                for a, b, kernel in sizes
            )
        )
        self.output_shape = (2 * planes, math.ceil(height // 2 / 8), math.ceil(width // 2 / 8))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(F.avg_pool2d(image.movedim(-1, 1).float() * self.scale, 2))


class Camera(nn.Module):
    """Features of one camera's image at each place of a grid: [N, C, P].

    Args:
        key: `rgb` or `depth`.
        space: the image's.
        net: `backbone` (cnn, or one of Habitat's resnet18, resnet50, se_resneXt50, …), `baseplanes` and
            `<key>_weights` are read: a PPO checkpoint of Habitat-Baselines whose visual encoder is taken and frozen,
            as VLN-CE does for depth.
    """

    def __init__(self, key: str, space: spaces.Box, net: Any):
        super().__init__()
        self.key = key
        if net.backbone == "cnn":
            self.encoder: nn.Module = SmallCNN(space, net.baseplanes)
        else:
            self.encoder = ResNetEncoder(
                spaces.Dict({key: space}),
                baseplanes=net.baseplanes,
                ngroups=net.baseplanes // 2,
                make_backbone=getattr(resnet, net.backbone),
                normalize_visual_inputs=key == "rgb",
            )
        weights = net[f"{key}_weights"]
        self.frozen = weights is not None
        if self.frozen:
            self._load(weights)
        channels, height, width = self.encoder.output_shape
        self.channels, self.places = channels, height * width

    def _load(self, path: str) -> None:
        prefix = "actor_critic.net.visual_encoder."
        state = {"actor_critic." + k.removeprefix("actor_critic."): v for k, v in read_pth(path)["state_dict"].items()}
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            self.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise VLNR1Error(
                f"vlnr1.net.{self.key}_weights={path}: not the visual encoder of vlnr1.net.backbone and baseplanes at "
                f"this image size ({str(error).splitlines()[-1].strip()})"
            ) from None
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Camera:
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image if isinstance(self.encoder, SmallCNN) else {self.key: image})
        return features.flatten(2)


def cameras(observation_space: spaces.Dict, net: Any) -> nn.ModuleDict:
    """A `Camera` for each of rgb and depth that is observed.

    Raises:
        ValueError: neither is, or the instruction is not.
    """
    seen = [key for key in CAMERAS if key in observation_space.spaces]
    if not seen or INSTRUCTION not in observation_space.spaces:
        raise VLNR1Error(
            f"this policy needs the observation {INSTRUCTION} and rgb or depth, but there are only "
            f"{', '.join(observation_space.spaces)}: add them to habitat.gym.obs_keys"
        )
    return nn.ModuleDict({key: Camera(key, observation_space.spaces[key], net) for key in seen})


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: query [N, K], keys [N, T, K], values [N, T, V], mask bool [N, T] → [N, V]."""
    scores = torch.einsum("nk,ntk->nt", query, keys) / query.shape[1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.einsum("nt,ntv->nv", scores.softmax(1), values)
