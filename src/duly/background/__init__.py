"""Work beside the caller: bounded pools of threads and tasks, and the three ways into them.

submit                  now; lost when the process dies
after(session).submit   after the outermost commit, or never; lost when the process dies then
durable(session).submit stored with the commit; runs at least once, where the App consumes
"""

from duly.background.drain import Drained
from duly.background.function import Background
from duly.background.pool import PoolStatus
from duly.background.registry import BackgroundOptions
from duly.background.task import Task

__all__ = ["Background", "BackgroundOptions", "Drained", "PoolStatus", "Task"]
