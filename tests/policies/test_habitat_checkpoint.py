"""Habitat-Baselines' checkpoints: configs are let in, anything else is not."""

import pytest
import torch
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf

from habitat_vlnr1.policies.habitat_checkpoint import make_plain, newest_pth, read_pth
from habitat_vlnr1.register import register

PRIMARY = """# @package _global_
defaults:
  - /benchmark/nav/pointnav: pointnav_base
  - /habitat_baselines: habitat_baselines_rl_config_base
  - /habitat_baselines/rl/policy/obs_transforms@{0}.obs_transforms.memory: long_short_memory
""".replace("{0}", "habitat_baselines.rl.policy.main_agent")


@pytest.fixture
def checkpoint(tmp_path):
    """As PPOTrainer.save_checkpoint writes it."""
    register()
    (tmp_path / "primary.yaml").write_text(PRIMARY)
    config = get_config("primary.yaml", [], str(tmp_path))
    content = {"state_dict": {"weight": torch.ones(2)}, "config": config, "extra_state": {"step": 3, "wall_time": 0.5}}
    for name in ("ckpt.0.pth", "latest.pth"):
        torch.save(content, tmp_path / name)
    return config, tmp_path / "ckpt.0.pth"


def test_a_stock_checkpoint_is_read_with_its_config(checkpoint):
    config, path = checkpoint
    read = read_pth(path)
    assert read["extra_state"]["step"] == 3 and torch.equal(read["state_dict"]["weight"], torch.ones(2))
    assert read["config"] == OmegaConf.to_container(config, enum_to_str=True)


def test_made_plain_torch_takes_it(checkpoint):
    config, path = checkpoint
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)
    make_plain(str(path))
    for name in ("ckpt.0.pth", "latest.pth"):
        plain = torch.load(path.with_name(name))
        assert OmegaConf.create(plain["config"]).habitat.seed == config.habitat.seed
    assert sorted(file.name for file in path.parent.glob("*pth*")) == ["ckpt.0.pth", "latest.pth"]


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_nothing_else_is_unpickled(tmp_path, capsys):
    torch.save({"state_dict": {}, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth: .*it holds builtins.print, which is neither weights nor config"):
        read_pth(tmp_path / "evil.pth")
    torch.save({"state_dict": {}, "config": OmegaConf.create}, tmp_path / "call.pth")
    with pytest.raises(ValueError, match="neither weights nor config"):
        read_pth(tmp_path / "call.pth")
    assert "ran" not in capsys.readouterr().out


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read_pth(tmp_path / "none.pth")
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ValueError, match=r"half.pth: not a Habitat-Baselines checkpoint"):
        read_pth(tmp_path / "half.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_pth(tmp_path / "other.pth")


def test_the_newest_is_the_highest_number(tmp_path):
    assert newest_pth(tmp_path) is None
    for name in ("ckpt.9.pth", "ckpt.10.pth", "latest.pth", "ckpt.x.pth"):
        (tmp_path / name).touch()
    assert newest_pth(tmp_path).name == "ckpt.10.pth"
