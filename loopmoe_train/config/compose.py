"""Compose a run from presets and overrides. The only module that imports Hydra."""

from __future__ import annotations

import difflib
import re
from typing import Any, List, Sequence, Tuple

from loopmoe_train.config.rules import check, paths
from loopmoe_train.config.schema import RunConfig, StudyConfig
from loopmoe_train.errors import Refused

_SYNTAX = "write GROUP=PRESET or setting=value"

# What other frameworks call it.
_OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "max_lr": "optim.lr",
    "batch_size": "global_batch_size",
    "epochs": "steps",
    "max_steps": "steps",
    "train_iters": "steps",
    "seq_length": "sequence_length",
    "seq_len": "sequence_length",
    "dtype": "precision",
    "world_size": "cluster.devices",
    "nnodes": "launcher.nodes",
    "rdzv_endpoint": "launcher.endpoint",
    "nproc_per_node": "cluster.devices",
    "num_layers": "model.body_layers",
    "tensor_model_parallel_size": "parallel.tensor_parallel_size",
    "pipeline_model_parallel_size": "parallel.pipeline_parallel_size",
    "expert_model_parallel_size": "parallel.expert_parallel_size",
    "num_layers_per_virtual_pipeline_stage": "parallel.virtual_pipeline_size",
    "moe_router_topk": "model.moe.top_k",
    "moe_ffn_hidden_size": "model.moe.expert_hidden_size",
    "ffn_hidden_size": "model.dense_ffn_hidden_size",
    "dropout": "model.hidden_dropout",
}

_LISTS = (
    "data.source", "data.validation", "memory.recompute_modules", "launcher.arguments",
    "launcher.hosts", "parallel.pipeline_layout",
)  # fmt: skip


def compose(overrides: Sequence[str], layout: bool = True) -> RunConfig:
    """Compose ``configs/train.yaml`` with Hydra ``overrides`` and check it.

    Args:
        layout: check the layout as well; without it is still to be found.

    Raises:
        Refused: an override that names nothing, a value of the wrong type, or a
            combination that cannot run; one line with the nearest valid names.
    """
    config = compose_unchecked(overrides)
    check(config, layout)
    return config


def compose_unchecked(overrides: Sequence[str]) -> RunConfig:
    """As :func:`compose`, without the rules: for who wants to tell all that is wrong.

    Raises:
        Refused: an override that names nothing, or a value of the wrong type.
    """
    config: RunConfig = _composed("train", "run_schema", RunConfig, overrides)
    return config


def compose_study(words: Sequence[str]) -> Tuple[StudyConfig, List[str]]:
    """Compose ``configs/study.yaml``: the study, and the settings that are for all of its runs.

    Args:
        words: ``study=NAME`` (or just NAME), once; ``study.KEY=VALUE`` for the study itself; the
            rest are settings of the runs.

    Raises:
        Refused: as :func:`compose`; the runs' settings are looked at when a run is composed.
    """
    named = [w if "=" in w or w[:1] in "-+~" else f"study={w}" for w in words]
    own = [w for w in named if w.startswith(("study=", "study."))]
    if sum(word.startswith("study=") for word in own) != 1:
        raise Refused("name one study", "e.g. loopmoe study smoke, or cpu, or gpu")
    try:
        study: StudyConfig = _composed(
            "study", "study_schema", StudyConfig, [word.removeprefix("study.") for word in own]
        )
    except Refused as error:
        hint = error.fix.replace("see loopmoe train --help", "see loopmoe study --help")
        raise Refused(
            f"the study's {error.what}", f"{hint} (its settings are study.KEY=VALUE)"
        ) from error
    return study, [word for word in named if word not in own]


def expand(overrides: Sequence[str]) -> List[Tuple[str, List[str]]]:
    """A Hydra sweep taken apart: (what is special about it, its overrides) for every combination.

    ``model=a,b seed=range(1,3)`` gives four, called ``model-a_seed-1`` and so on.

    Raises:
        Refused: an override that cannot be read, or nothing is swept over.
    """
    from itertools import product

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: List[List[str]] = []
    swept: List[bool] = []
    for item in overrides:
        try:
            parsed = OverridesParser.create().parse_override(item)
            swept.append(parsed.is_sweep_override())
            key = parsed.get_key_element()
            choices.append(
                [f"{key}={value}" for value in parsed.sweep_string_iterator()]
                if swept[-1]
                else [item]
            )
        except HydraException as error:
            raise Refused(f"{item!r}: {str(error).splitlines()[0]}", _SYNTAX) from error
    if not any(swept):
        raise Refused(
            "-m but no setting has several values", "e.g. model=loopmoe_tiny,vanilla_tiny"
        )
    return [
        ("_".join(_in_a_name(word) for word, special in zip(words, swept) if special), list(words))
        for words in product(*choices)
    ]


def _in_a_name(override: str) -> str:
    """``optim.lr=2e-3`` as ``lr-2e-3``: fit for a folder."""
    key, _, value = override.partition("=")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{key.rsplit('.', 1)[-1]}-{value}").strip("-.")


def _composed(name: str, schema_name: str, schema: Any, overrides: Sequence[str]) -> Any:
    """``configs/<name>.yaml`` with overrides, as an object of its ``schema``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name=schema_name, node=schema)
    GlobalHydra.instance().clear()
    for item in overrides:
        if item[:1] in "+~" or "=" not in item[1:]:
            hint = f"write {item.lstrip('-')}=VALUE" if item[:2] == "--" and item[2:] else _SYNTAX
            raise Refused(f"{item!r}: not a setting", hint)
        try:
            OverridesParser.create().parse_override(_as_list(item))
        except HydraException as error:
            why = str(error).splitlines()[0]
            raise Refused(f"{item!r}: {why}", "quote special characters: 'key=\"a b\"'") from error
    try:
        with initialize_config_module("loopmoe_configs", version_base="1.3"):
            node = hydra_compose(name, overrides=[_as_list(item) for item in overrides])
        return OmegaConf.to_object(node)
    except Refused:
        raise
    except Exception as error:  # Hydra and OmegaConf have no common base but Exception
        raise _refused(error, paths(schema())) from error


def _as_list(override: str) -> str:
    """Let list-valued keys be given as one plain value: ``data.source=DIR``."""
    key, sep, value = override.partition("=")
    if sep and key in _LISTS and not value.startswith("["):
        return f"{key}=[{value}]"
    return override


def _refused(error: Exception, settings: List[str]) -> Refused:
    """Turn a composition error into one line that names the nearest valid words of ``settings``."""
    text = str(error)
    missing = re.search(r"Could not find '([^']+)/([^']*)'", text)
    if missing:
        group, name = missing.groups()
        options = re.findall(r"^\s+(\S+)$", text.split("Available options", 1)[-1], re.MULTILINE)
        return Refused(f"{group}={name}: there is no such preset", _suggest(name, options))
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' (?:is )?not in", text
    )
    if unknown and unknown.group(1) not in settings:
        key = unknown.group(1)
        return Refused(f"{key}: there is no such setting", _suggest(key, settings))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if unknown and cause is not None:  # a known setting, but something inside its value is not
        lines = [f"{unknown.group(1)}: {str(cause).splitlines()[0]}"]
    if cause is not None and "merging override" in lines[0]:
        lines.append(str(cause).splitlines()[0])
    return Refused(
        ": ".join(lines[:2]), "write GROUP=PRESET or setting=value; see loopmoe train --help"
    )


def _suggest(word: str, options: List[str]) -> str:
    """The options nearest to ``word``, by whole name and by last part."""
    tail = word.rsplit(".", 1)[-1]
    near = [_OTHER_NAMES[tail]] if _OTHER_NAMES.get(tail) in options else []
    near += difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    near += [option for option in options if option.rsplit(".", 1)[-1] == tail]
    by_tail = {option.rsplit(".", 1)[-1]: option for option in options}
    near += [by_tail[name] for name in difflib.get_close_matches(tail, list(by_tail), n=2)]
    if near:
        return "did you mean " + ", ".join(list(dict.fromkeys(near))[:4]) + "?"
    # Sections instead of every setting in them.
    heads = {option.partition(".")[0] + ("." if "." in option else "") for option in options}
    return "use one of " + ", ".join(sorted(heads))
