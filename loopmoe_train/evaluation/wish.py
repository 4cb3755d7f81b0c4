"""What an evaluation is to measure besides the loss. Importable without torch."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, List, Optional

from loopmoe_train.errors import Refused

_WISH = "LOOPMOE_EVALUATE"


@dataclass
class TaskRequest:
    """Tasks of lm-evaluation-harness by name; ``folder`` holds descriptions (YAML) of one's own.

    Attributes:
        shots: examples before each question; None: as the task says.
        limit: questions per task; None: all.
    """

    tasks: List[str]
    folder: Optional[str] = None
    shots: Optional[int] = None
    limit: Optional[int] = None


@dataclass
class Wish:
    """What is to be measured besides the loss; the front door hands it to the ranks."""

    iterations: List[int] = field(default_factory=list)
    tasks: Optional[TaskRequest] = None

    def to_environment(self) -> None:
        """For the processes that this one starts."""
        os.environ[_WISH] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> Wish:
        """What the process that started this one wishes."""
        found = json.loads(os.environ.get(_WISH, "{}"))
        tasks = found.get("tasks")
        return cls(found.get("iterations", []), TaskRequest(**tasks) if tasks else None)


def task_manager(asked: TaskRequest) -> Any:
    """The harness's index with all tasks asked for.

    Raises:
        Refused: the harness is not installed, or it knows no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise Refused(
            "--tasks needs lm-evaluation-harness, which is not installed",
            "pip install 'loopmoe-train[eval]'",
        )
    from lm_eval.tasks import TaskManager

    # Its own descriptions are thousands of files: they are read if one is needed.
    manager = TaskManager(include_path=asked.folder, include_defaults=False)
    if not all(manager.match_tasks([task]) for task in asked.tasks):
        manager = TaskManager(include_path=asked.folder)
    unknown = [task for task in asked.tasks if not manager.match_tasks([task])]
    if unknown:
        where = f" and {asked.folder}" if asked.folder else ""
        raise Refused(
            f"--tasks {','.join(unknown)}: not a task of lm-evaluation-harness{where}",
            "see its list of tasks, or describe one in a folder for --task-folder",
        )
    return manager
